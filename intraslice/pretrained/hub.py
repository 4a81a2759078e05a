"""Whether the Hugging Face Hub can be reached, asked once a process and never for longer than a few seconds."""

from __future__ import annotations

import functools
import threading

import huggingface_hub
from huggingface_hub import constants

PATIENCE = 4.0  # seconds


@functools.cache
def hub_answers() -> bool:
    """True when the Hub (or the mirror that HF_ENDPOINT names) answers. With HF_HUB_OFFLINE=1 False, without asking."""
    if constants.is_offline_mode():
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            response = huggingface_hub.get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception:  # no route, no name, no certificate: whatever it is, the answer is no
            return
        if response.status_code < 400:  # a firewall's refusal is an answer too, but not the Hub's
            answered.set()

    # A name look-up knows no timeout, so the wait is on the thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return answered.is_set()
