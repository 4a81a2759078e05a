"""A device that computes on the CPU and refuses tensors of the CPU, as a GPU does.

A tensor on it wraps one on the CPU. `torch.zeros(4)` without a device, combined with it, is an error. `register` is for
a process of its own (`pretended_stages.py`): torch must know the device before its first backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten
MOVES = (aten._to_copy.default, aten.copy_.default)  # the operations that take tensors of two devices
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)  # a GPU takes indices of the CPU


def is_pretended(device: Any) -> bool:
    """Whether a device, or its name, is the pretended one."""
    return device is not None and torch.device(device).type == NAME


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device; `held` has its values, on the CPU."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendedTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, device=torch.device(NAME, 0))
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(operation, *args, **kwargs or {})

    def tolist(self) -> Any:
        """As of a tensor on a GPU; torch refuses subclasses."""
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As of a tensor on a GPU."""
        if not force:
            raise TypeError(f"a tensor on {NAME} has no numpy array; move it to the CPU first")
        return self.held.numpy()


def compute(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an operation on the CPU. Raises RuntimeError for tensors of two devices, as a GPU would."""
    if operation is aten._fused_sdp_choice.default:
        return 0  # attention by plain products, which this function sees
    checked = (args[0], *args[2:]) if operation in INDEXED and is_pretended(args[0].device) else (args, kwargs)
    tensors = [leaf for leaf in tree_leaves(checked) if isinstance(leaf, torch.Tensor)]
    pretended = any(is_pretended(tensor.device) for tensor in tensors)
    mixed = pretended and any(tensor.ndim and not is_pretended(tensor.device) for tensor in tensors)
    if mixed and operation not in MOVES:
        raise RuntimeError(f"{operation} got tensors on {NAME} and on the CPU")
    if operation is aten.copy_.default:
        pretended = is_pretended(args[0].device)
    if kwargs.get("device") is not None:
        pretended = is_pretended(kwargs["device"])
    on_cpu = {**kwargs, "device": torch.device("cpu")} if pretended and "device" in kwargs else kwargs
    held = tree_map(lambda leaf: leaf.held if isinstance(leaf, PretendedTensor) else leaf, (args, on_cpu))
    result = operation(*held[0], **held[1])
    if not pretended:
        return result
    result = tree_map(lambda leaf: PretendedTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
    has_arguments = any(isinstance(leaf, PretendedTensor) for leaf in tree_leaves((args, kwargs)))
    return return_and_correct_aliasing(operation, args, kwargs, result) if has_arguments else result


class _Generator(torch.Generator):
    """A generator of the CPU that is on the pretended device by name."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        generator = super().__new__(cls, device="cpu" if is_pretended(device) else device)
        generator.place = torch.device(device)
        return generator

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return self.place


def _on_cpu_first(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function that makes a tensor of Python's numbers, which torch does without asking the device."""

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        tensor = make(data, device="cpu" if is_pretended(device) else device, **options)
        return tensor.to(device) if is_pretended(device) else tensor

    return made


def register() -> None:
    """Make the device known to torch, for as long as this process lives."""
    _setup_privateuseone_for_python_backend(NAME)
    register.library = torch.library.Library("_", "IMPL")  # which ends with the object
    register.library.fallback(compute, "PrivateUse1")
    torch.tensor, torch.as_tensor = _on_cpu_first(torch.tensor), _on_cpu_first(torch.as_tensor)
    torch.Generator = _Generator
