"""Addresses of clients: of the connection, behind proxies, and where nothing tells."""

from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from starlette.datastructures import Headers

from components.gradio_compat.http import addresses
from components.gradio_compat.http.addresses import address_of
from components.jobs import limits
from intraslice.core.errors import UserError


def request(peer: str, forwarded: str = "") -> SimpleNamespace:
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
    assert address_of(request(peer, forwarded)) == address


def test_plain_gradio_has_the_address_of_the_proxy_and_ours_that_before_it(launch, monkeypatch) -> None:
    monkeypatch.setenv(limits.HOPS_VARIABLE, "1")
    found = []

    def work(request: gr.Request) -> float:
        found.append((request.client.host, address_of(request)))
        return 1.0

    with gr.Blocks() as page:
        gr.api(work, api_name="work")
    client = launch(page)
    transport = httpx.HTTPTransport(local_address="127.0.0.2")  # gradio's server takes 127.0.0.1 for a proxy
    with httpx.Client(transport=transport, headers={"x-forwarded-for": "8.8.4.4"}) as http:
        http.post(f"{client.api}/run/work", json={"data": []}).raise_for_status()
    assert found == [("127.0.0.2", "8.8.4.4")]


def test_a_space_has_one_proxy_and_a_desktop_none(monkeypatch) -> None:
    monkeypatch.delenv(limits.HOPS_VARIABLE, raising=False)
    assert address_of(request("127.0.0.1", "8.8.4.4")) == "127.0.0.1"
    monkeypatch.setenv("SPACE_ID", "me/page")
    assert address_of(request("127.0.0.1", "8.8.4.4")) == "8.8.4.4"


def test_clients_that_a_proxy_hides_are_no_address_and_the_log_says_so_once(monkeypatch, caplog) -> None:
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    addresses._warn_once.cache_clear()
    assert address_of(request("10.0.0.1", "8.8.4.4")) == address_of(request("10.0.0.1", "9.9.9.9")) == ""
    (record,) = caplog.records
    assert limits.HOPS_VARIABLE in record.message


def test_a_number_of_proxies_that_is_none_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(limits.HOPS_VARIABLE, "-1")
    with pytest.raises(UserError, match="must be a whole number, 0 or more, got '-1'"):
        limits.trusted_hops()
