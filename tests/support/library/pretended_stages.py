"""All stages of tiny models on the pretended device: `python pretended_stages.py NAME…` prints what went wrong as JSON.

Each family runs on the CPU first.
"""

import json
import os
import sys
import tempfile
import traceback
from unittest.mock import patch

import torch
from models import _loaded
from pretended_device import NAME, register
from safetensors.torch import load_file
from tiny_models import FAMILIES, VOCABULARY

import intraslice
from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.loading import LoadedModel
from intraslice.methods.registry import plan_by, slice_by

SETTINGS = (
    SliceConfig(0.4, bias=1.0, order="sequential", recovery="distill"),
    SliceConfig(0.4, "fisher", order="one-shot"),
)


def stages(loaded: LoadedModel) -> list[tuple[float, str]]:
    """For each order, the sliced model's divergence from the dense one, and its answer to a prompt."""
    tokens = torch.randint(3, VOCABULARY, (8, 24), generator=torch.Generator().manual_seed(7))
    model, results = loaded.model, []
    stats = calibrate(loaded, tokens, progress=False)
    for config in SETTINGS:
        plan = plan_by("intraslice", model, stats, config)
        sliced = slice_by("intraslice", model, plan, stats, tokens, progress=False)
        assert {tensor.device for tensor in (*sliced.parameters(), *sliced.buffers())} == {model.device}
        with tempfile.TemporaryDirectory() as folder:
            intraslice.save(sliced, loaded.tokenizer, f"{folder}/sliced", {"source": "random weights"})
            saved = load_file(f"{folder}/sliced/model.safetensors")
        assert all(torch.equal(sliced.state_dict()[name].cpu(), tensor) for name, tensor in saved.items())
        losses = measure_losses(sliced, tokens[:4], dense=DenseStates(model), progress=False)
        answer = "".join(generate_text(sliced, loaded.tokenizer, "w5 w9 w77", max_new_tokens=8))
        results.append((losses.divergence()[0], answer))
    return results


def problem(name: str) -> str:
    """The error of the family's stages on the pretended device, or how they differ from the CPU, else nothing."""
    results = []
    for device in ("cpu", NAME):
        with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, {"INTRASLICE_CACHE": cache}):
            loaded = _loaded(FAMILIES[name](), name)
            loaded.model.to(device)
            try:
                results.append(stages(loaded))
            except Exception:
                return f"{name} on {device}: {traceback.format_exc()}"
    for (divergence, answer), (found, found_answer) in zip(*results, strict=True):
        if abs(found / divergence - 1) > 1e-3 or found_answer != answer:
            return f"{name}: {(found, found_answer)} on {NAME}, {(divergence, answer)} on the CPU"
    return ""


if __name__ == "__main__":
    register()
    print(json.dumps({name: problem(name) for name in sys.argv[1:]}))
