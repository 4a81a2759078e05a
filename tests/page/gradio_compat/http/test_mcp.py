"""Calls by MCP: their clients are told apart, and have left when their connection has."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import anyio
import gradio as gr
import httpx
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from starlette.middleware import Middleware

from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.callers import client_of, current_caller
from components.gradio_compat.http.mcp import HEADER, McpCallers, mcp_caller, prepare_mcp
from components.jobs import limits
from components.jobs.job import Caller

ADDRESSES = ("127.0.0.2", "127.0.0.3")


class Work:
    """A tool that notes who calls it, and goes on until it may end."""

    def __init__(self) -> None:
        self.callers: list[tuple[str, Caller]] = []
        self.may_end = threading.Event()

    def __call__(self, request: gr.Request) -> float:
        """Work for a while."""
        self.callers.append((client_of(request), current_caller()))
        self.may_end.wait(60)
        return 1.0


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


def until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [pytest.param(gr.Blocks, marks=pytest.mark.slow), PatchedBlocks])
def test_plain_gradio_knows_no_client_of_a_call_and_ours_one_for_each_address(kind, launch, monkeypatch) -> None:
    monkeypatch.setenv(limits.HOPS_VARIABLE, "0")
    work, may_leave = Work(), threading.Event()

    def tool(request: gr.Request) -> float:
        """Work for a while."""
        return work(request)

    with kind() as page:
        gr.api(tool, api_name="work", concurrency_limit=4)
    ours = kind is PatchedBlocks
    client = launch(page, mcp_server=True, app_kwargs={"middleware": [Middleware(McpCallers)] if ours else []})
    threads = [
        threading.Thread(target=call_from, args=(address, client.address, may_leave.is_set), daemon=True)
        for address in ADDRESSES
    ]
    if ours:  # a session may have any name, and as many calls as are allowed
        monkeypatch.setenv("INTRASLICE_MAX_VISITOR_CALLS", "1")
        asked = {"data": [], "session_hash": f"mcp {ADDRESSES[0]}"}
        client.http.post(f"{client.api}/call/work", json=asked).raise_for_status()
    try:
        for thread in threads:
            thread.start()
        until(lambda: len(work.callers) == len(ADDRESSES))
        clients, callers = zip(*work.callers, strict=True)
        if ours:
            assert clients == tuple(f"mcp {caller.address}" for caller in callers)
            of_names = {client_of(SimpleNamespace(session_hash=name, headers={})) for name in (*clients, "somebody")}
            assert not of_names & {*clients, client_of(None), client_of(SimpleNamespace(headers={}))}
        assert {caller.address for caller in callers} == (set(ADDRESSES) if ours else {"127.0.0.1"})
        assert all(caller.is_connected() for caller in callers)
        may_leave.set()
        for thread in threads:
            thread.join()
        if ours:
            until(lambda: not any(caller.is_connected() for caller in callers))
        else:
            time.sleep(1.0)
            assert all(caller.is_connected() for caller in callers)
    finally:
        may_leave.set()
        work.may_end.set()


@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_plain_gradio_describes_tools_for_each_request_and_ours_once(kind, launch, monkeypatch) -> None:
    def tool(value: float) -> float:
        """Return a number."""
        return value

    with gr.Blocks() as page:
        gr.api(tool, api_name="work")
    client, described, may_leave = launch(page, mcp_server=True), [], threading.Event()
    simplify = page.mcp_server_obj.simplify_filedata_schema
    monkeypatch.setattr(
        page.mcp_server_obj, "simplify_filedata_schema", lambda schema: described.append(1) or simplify(schema)
    )
    if kind == "ours":
        prepare_mcp(page.mcp_server_obj)
    may_leave.set()
    for _ in range(3):
        call_from("127.0.0.1", client.address, may_leave.is_set)
    assert len(described) == 1 if kind == "ours" else len(described) >= 3


def test_a_number_that_nobody_was_given_is_of_nobody_who_is_connected() -> None:
    caller = mcp_caller(SimpleNamespace(headers={HEADER: "0" * 32}))
    assert caller is not None
    assert not caller.is_connected()
    assert mcp_caller(None) is None
