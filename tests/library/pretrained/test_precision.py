"""Which device and precision are chosen where nobody says so."""

import pytest
import torch

from intraslice.pretrained.precision import choose_device, choose_dtype


@pytest.fixture
def processor(monkeypatch):
    """A machine without CUDA whose CPU is able to do what is given."""

    def able(**capabilities: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)

    return able


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16", "bf16"])
def test_native_bfloat16_is_used(processor, capability):
    processor(**{capability: True})
    assert (choose_device(), choose_dtype()) == ("cpu", "bfloat16")


def test_elsewhere_it_is_float32(processor):
    processor(avx512_f=True, avx512_bf16=False)
    assert choose_dtype() == "float32"
    assert choose_dtype(device="mps") == "float32"
    assert choose_dtype(device="cuda") == "float32"  # loading says that there is none


@pytest.mark.parametrize("supported", [True, False])
def test_cuda_is_used_where_it_is_there(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose_device() == "cuda"
    assert choose_dtype(device="cuda:0") == ("bfloat16" if supported else "float32")


def test_what_is_named_is_taken(processor):
    processor(avx512_bf16=True)
    assert choose_device("cuda:1") == "cuda:1"
    assert choose_dtype("float32") == "float32"
