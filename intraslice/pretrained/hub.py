"""Checks once per process, within a few seconds, whether the Hugging Face Hub can be reached."""

from __future__ import annotations

import functools
import threading

import huggingface_hub
from huggingface_hub import constants

TIMEOUT = 4.0  # seconds


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the Hub (or the mirror in HF_ENDPOINT) answers. Always False with HF_HUB_OFFLINE=1."""
    if constants.is_offline_mode():
        return False
    reached = threading.Event()

    def request() -> None:
        try:
            response = huggingface_hub.get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
        except Exception:  # no route, no name, no certificate: the Hub is out of reach
            return
        if response.status_code < 400:  # a firewall may answer in place of the Hub, with an error
            reached.set()

    # DNS look-ups have no timeout, so this waits for a thread.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return reached.is_set()
