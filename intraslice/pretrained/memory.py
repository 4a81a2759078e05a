"""Whether a model fits, known before it is loaded: from the headers of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import get_local_safetensors_metadata, get_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from intraslice.errors import UserError
from intraslice.pretrained.hub import hub_answers
from intraslice.pretrained.reader import Weights, first_line, require_gguf
from intraslice.pretrained.sources import DEFAULT, find_weights, out_of_reach

DEFAULT_PARAMETERS = 134_515_008
# Moments, one layer's activations and the interpreter, beside the weights.
OVERHEAD = 256 * 2**20


@dataclass(frozen=True)
class MemoryEstimate:
    """`bytes` of the dense weights in the dtype asked for, and the bytes `available` on the device now.

    `weights` are the ones on this disk that were counted; None where they have yet to be fetched.
    """

    parameters: int
    bytes: int
    available: int
    weights: Weights | None = None

    @property
    def needed(self) -> int:
        """Bytes to slice: the dense model, a sliced copy that is no larger, and what is computed between them."""
        return 2 * self.bytes + OVERHEAD


def estimate_memory(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> MemoryEstimate:
    """How much memory the model `name` takes, without loading it.

    Raises:
        UserError: there is no such model, or its files are not safetensors or GGUF.
    """
    weights = find_weights(name)
    parameters = _count_parameters(name, weights)
    return MemoryEstimate(parameters, parameters * dtype.itemsize, available_bytes(device), weights)


def require_memory(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> MemoryEstimate:
    """The estimate. Raises UserError, with both numbers, when the model and its sliced copy will not fit."""
    estimate = estimate_memory(name, dtype, device)
    if estimate.needed > estimate.available:
        remedy = "take a smaller model" if dtype.itemsize <= 2 else "take bfloat16 or a smaller model"
        needed, free = estimate.needed / 2**30, estimate.available / 2**30
        raise UserError(
            f"{name} has {estimate.parameters / 1e6:,.0f} M parameters; slicing it in {str(dtype).split('.')[-1]} "
            f"needs {needed:.1f} GiB, and {free:.1f} GiB are free on {device}; {remedy}"
        )
    return estimate


def available_bytes(device: str = "cpu") -> int:
    """Bytes that can be allocated now: of the GPU, else of the machine or of the container that limits it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    limit, used, reclaimable = (
        Path("/sys/fs/cgroup") / file for file in ("memory.max", "memory.current", "memory.stat")
    )
    if limit.exists() and (bound := limit.read_text().strip()) != "max":
        pages = dict(line.split() for line in reclaimable.read_text().splitlines())
        in_use = int(used.read_text()) - int(pages["inactive_file"])
        available = min(available, max(0, int(bound) - in_use))
    return available


def _count_parameters(name: str, weights: Weights | None) -> int:
    try:
        if weights is None and name == DEFAULT:
            return DEFAULT_PARAMETERS
        if weights is None:
            if not hub_answers():
                raise out_of_reach(name)
            return sum(get_safetensors_metadata(name).parameter_count.values())
        if weights.gguf:
            return _count_gguf(weights)
        return sum(get_local_safetensors_metadata(weights.folder).parameter_count.values())
    except UserError:
        raise
    except NotASafetensorsRepoError as error:
        raise UserError(f"{name!r} has no weights as safetensors (pickled .bin files are not read)") from error
    except (OSError, ValueError, IndexError, SafetensorsParsingError) as error:
        raise UserError(f"the weights of {name!r} cannot be read ({first_line(error)}); fetch them again") from error


def _count_gguf(weights: Weights) -> int:
    file = weights.folder / str(weights.gguf)
    require_gguf(file)
    from gguf import GGUFReader

    return sum(int(tensor.n_elements) for tensor in GGUFReader(file).tensors)
