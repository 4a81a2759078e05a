"""The network address of whoever sent a request.

Behind a proxy, such as a Space's, every connection comes from the proxy, which appends the address of its peer to
`X-Forwarded-For`; what stands left of that was written by the client and may be false. `INTRASLICE_TRUSTED_HOPS` says
how many proxies there are: 1 on a Space, else 0. Gradio only has the address of the connection.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_callers.py`.
"""

from __future__ import annotations

import ipaddress
import logging
from functools import cache
from typing import Any

from ... import limits

log = logging.getLogger(__name__)

NETWORK = 64  # bits of an IPv6 address that name a subscriber, who has all addresses below
SITE = 48  # bits that name a site, which may have all networks below


def address_of(request: Any) -> str:
    """The address of a request's client, IPv6 by its network; "" where a proxy hides it.

    Args:
        request: of starlette or of gradio, with `client` and `headers`; None for a call without a request.
    """
    if request is None or request.client is None:
        return ""
    forwarded, hops = request.headers.get("x-forwarded-for", ""), limits.trusted_hops()
    if not hops:
        if forwarded and limits.hosted() and not _parsed(request.client.host, require_global=True):
            _warn_once()
            return ""
        return _parsed(request.client.host)
    entries = forwarded.split(",")
    addresses = [_parsed(entry, require_global=True) for entry in entries[: len(entries) - (hops - 1)]]
    return next(filter(None, reversed(addresses)), "")


def site_of(request: Any) -> str:
    """As `address_of`, but IPv6 by its site: whoever has 65,536 networks counts once."""
    address = address_of(request)
    return str(ipaddress.ip_network(address).supernet(new_prefix=SITE)) if ":" in address else address


def _parsed(text: str, require_global: bool = False) -> str:
    try:
        address = ipaddress.ip_address(text.strip().strip("[]"))
    except ValueError:
        return ""
    if require_global and not address.is_global:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, NETWORK), strict=False))
    return str(address)


@cache
def _warn_once() -> None:
    log.warning("requests come through a proxy, so clients are limited by session alone; set %s", limits.HOPS_VARIABLE)
