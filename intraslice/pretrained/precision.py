"""Default device and precision of a model."""

from typing import Literal, cast, get_args

import torch

from intraslice.core.checks import one_of

Precision = Literal["float32", "bfloat16"]
AUTO: Literal["auto"] = "auto"
NATIVE = ("avx512_bf16", "amx_bf16", "bf16")  # torch's names of CPU capabilities, on x86 and ARM


def choose_device(name: str = AUTO) -> str:
    """`name` itself, or for "auto" a CUDA device if there is one, else the CPU."""
    if name != AUTO:
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(dtype: str | torch.dtype = AUTO, device: str = "cpu") -> Precision:
    """The name of `dtype`, or for "auto" bfloat16 if the device multiplies it natively, else float32.

    Emulated bfloat16 is slower than float32. Moments, solves and losses are float32 or better in either case. Raises
    UserError for any other type.
    """
    name = str(dtype).removeprefix("torch.")
    one_of("dtype", name, (AUTO, *get_args(Precision)))
    if name != AUTO:
        return cast(Precision, name)
    kind = device.partition(":")[0]
    if kind == "cuda":
        is_native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = kind == "cpu" and any(map(torch.cpu.get_capabilities().get, NATIVE))
    return "bfloat16" if is_native else "float32"
