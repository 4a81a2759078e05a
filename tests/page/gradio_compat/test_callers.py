"""Who calls: the address of a client, also behind proxies and by MCP, and whether they are still connected."""

import asyncio
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import anyio
import gradio as gr
import httpx
import pytest
from gradio_pages import Client, page_of
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from stepping import until

from components import limits
from components.gradio_compat import callers as callers_module
from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.callers import MCP_HEADER, address_of, client_of, current_caller, mcp_caller
from components.jobs.job import Caller
from intraslice.core.errors import UserError


def asked_by(peer: str, forwarded: str = "") -> SimpleNamespace:
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    return SimpleNamespace(client=SimpleNamespace(host=peer), headers=Headers(headers))


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "address"),
    [
        ("0", "127.0.0.3", "", "127.0.0.3"),
        ("0", "8.8.4.4", "9.9.9.9", "8.8.4.4"),  # what a client writes itself
        ("0", "2001:db8:1:2:3::4", "", "2001:db8:1:2::/64"),
        ("0", "::ffff:8.8.4.4", "", "8.8.4.4"),
        ("1", "10.0.0.1", "8.8.4.4", "8.8.4.4"),
        ("1", "10.0.0.1", "9.9.9.9, 8.8.4.4", "8.8.4.4"),
        ("1", "10.0.0.1", "8.8.4.4, 10.0.0.7", "8.8.4.4"),
        ("2", "10.0.0.1", "9.9.9.9, 8.8.4.4, 1.1.1.1", "8.8.4.4"),
        ("1", "10.0.0.1", "2600:1:2:3:4::5", "2600:1:2:3::/64"),
        ("1", "10.0.0.1", "", ""),
        ("1", "10.0.0.1", "unknown, 10.0.0.2", ""),
        ("0", "not an address", "", ""),
    ],
)
def test_the_address_is_that_which_the_trusted_proxies_saw(hops, peer, forwarded, address, monkeypatch) -> None:
    monkeypatch.setenv(limits.HOPS_VARIABLE, hops)
    assert address_of(asked_by(peer, forwarded)) == address


def test_plain_gradio_has_the_address_of_the_proxy_and_ours_that_before_it(launch, monkeypatch) -> None:
    monkeypatch.setenv(limits.HOPS_VARIABLE, "1")
    found = []

    def work(asked_by: gr.Request) -> float:
        found.append((asked_by.client.host, address_of(asked_by)))
        return 1.0

    client = Client(launch(page_of(work)).address, "127.0.0.2")  # gradio's server takes 127.0.0.1 for a proxy
    client.http.headers["x-forwarded-for"] = "8.8.4.4"
    client.http.post(f"{client.api}/run/work", json={"data": []}).raise_for_status()
    assert found == [("127.0.0.2", "8.8.4.4")]


def test_a_space_has_one_proxy_a_desktop_none_and_another_number_is_refused(monkeypatch) -> None:
    monkeypatch.delenv(limits.HOPS_VARIABLE, raising=False)
    assert address_of(asked_by("127.0.0.1", "8.8.4.4")) == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "me/page")
    assert address_of(asked_by("127.0.0.1", "8.8.4.4")) == "8.8.4.4"
    monkeypatch.setenv(limits.HOPS_VARIABLE, "-1")
    with pytest.raises(UserError, match="must be a whole number, 0 or more, got '-1'"):
        limits.trusted_hops()


def test_clients_that_a_proxy_hides_are_no_address_and_the_log_says_so_once(monkeypatch, caplog) -> None:
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    callers_module._warn_once.cache_clear()
    assert address_of(asked_by("10.0.0.1", "8.8.4.4")) == address_of(asked_by("10.0.0.1", "9.9.9.9")) == ""
    (record,) = caplog.records
    assert limits.HOPS_VARIABLE in record.message


def test_plain_gradio_tells_a_running_handler_nothing_and_ours_asks(launch) -> None:
    checks, may_end, ended = [], threading.Event(), threading.Event()

    def work() -> Iterator[float]:
        checks.append(current_caller().is_connected)
        try:
            yield 0.0
            may_end.wait(60)
            yield 1.0
        finally:
            ended.set()

    client = launch(page_of(work, PatchedBlocks))
    with client.http.stream("GET", f"{client.api}/call/work/{client.join('work')}") as stream:
        lines = stream.iter_lines()  # kept, since httpx closes the connection with it
        next(line for line in lines if line == "event: generating")
        (is_connected,) = checks
        assert is_connected()
    until(lambda: not is_connected())
    assert not ended.is_set()  # gradio itself only asks for no more
    may_end.set()
    assert ended.wait(30)


def test_outside_of_a_call_no_client_can_leave_and_a_foreign_number_is_of_none_that_is_connected() -> None:
    assert current_caller().is_connected()
    caller = mcp_caller(SimpleNamespace(headers={MCP_HEADER: "0" * 32}))
    assert caller is not None
    assert not caller.is_connected()
    assert mcp_caller(None) is None


ADDRESSES = ("127.0.0.2", "127.0.0.3")


def call_from(address: str, server: str, until: Any) -> None:
    """Call the tool over a connection from `address`, and leave when `until()` holds."""

    async def call() -> None:
        def client(**options: Any) -> httpx.AsyncClient:
            return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address=address), **options)

        async with (
            streamablehttp_client(f"{server}gradio_api/mcp/", httpx_client_factory=client) as (read, write, _),
            ClientSession(read, write) as session,
            anyio.create_task_group() as tasks,
        ):
            await session.initialize()
            (tool,) = (await session.list_tools()).tools
            tasks.start_soon(session.call_tool, tool.name)
            while not until():
                await asyncio.sleep(0.01)
            tasks.cancel_scope.cancel()

    asyncio.run(call())


def test_a_call_by_mcp_has_one_client_for_each_address_while_that_is_connected(launch, monkeypatch) -> None:
    monkeypatch.setenv(limits.HOPS_VARIABLE, "0")
    found: list[tuple[str, Caller]] = []
    may_end, may_leave = threading.Event(), threading.Event()

    def tool(request: gr.Request) -> float:
        """Work for a while."""
        found.append((client_of(request), current_caller()))
        may_end.wait(60)
        return 1.0

    page = page_of(tool, PatchedBlocks, concurrency_limit=4)
    client = launch(page, mcp_server=True, app_kwargs={"middleware": [Middleware(callers_module.mcp_callers)]})
    threads = [
        threading.Thread(target=call_from, args=(address, client.address, may_leave.is_set), daemon=True)
        for address in ADDRESSES
    ]
    # A session may have any name, and as many calls as are allowed.
    monkeypatch.setenv("INTRASLICE_MAX_CLIENT_CALLS", "1")
    asked = {"data": [], "session_hash": f"mcp {ADDRESSES[0]}"}
    client.http.post(f"{client.api}/call/work", json=asked).raise_for_status()
    try:
        for thread in threads:
            thread.start()
        until(lambda: len(found) == len(ADDRESSES))
        clients, callers = zip(*found, strict=True)
        assert clients == tuple(f"mcp {caller.address}" for caller in callers)
        of_names = {client_of(SimpleNamespace(session_hash=name, headers={})) for name in (*clients, "program")}
        assert not of_names & {*clients, client_of(None), client_of(SimpleNamespace(headers={}))}
        assert {caller.address for caller in callers} == set(ADDRESSES)
        assert all(caller.is_connected() for caller in callers)
        may_leave.set()
        for thread in threads:
            thread.join()
        until(lambda: not any(caller.is_connected() for caller in callers))
    finally:
        may_leave.set()
        may_end.set()


@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_plain_gradio_describes_tools_for_each_request_and_ours_once(kind, launch, monkeypatch) -> None:
    page = page_of()
    client, described = launch(page, mcp_server=True), []
    server, simplify = page.mcp_server_obj, page.mcp_server_obj.simplify_filedata_schema
    monkeypatch.setattr(server, "simplify_filedata_schema", lambda schema: described.append(1) or simplify(schema))
    if kind == "ours":
        callers_module.prepare_mcp(server)
    for _ in range(3):
        call_from("127.0.0.1", client.address, lambda: True)
    assert len(described) == 1 if kind == "ours" else len(described) >= 3
