"""`check`: what it says of a model is what slicing then gives, and no weights are read."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from opened import save_slice
from refusing import refused

from intraslice.__main__ import main
from intraslice.check import SPARSITIES, check_model
from intraslice.checkpoints.to_gguf import require_deci_layers
from intraslice.core.config import CalibrationConfig
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.modeling.families import blocks
from intraslice.modeling.residual import require_no_output_norms
from intraslice.planning.sizes import MULTIPLE
from intraslice.pretrained import memory

CALIBRATION = CalibrationConfig(sequences=2, length=16)


def test_every_family_is_what_was_said_of_it(every_family_case, tmp_path, monkeypatch):
    case = every_family_case
    case.original.save_pretrained(tmp_path)
    monkeypatch.setattr(memory, "_speeds", lambda *_: (1e9, 1e9))
    found = check_model(str(tmp_path), CALIBRATION)
    model, sizes = case.dense, case.stats.sizes
    assert found.sizes[0].parameters == sum(parameter.numel() for parameter in model.parameters())
    estimate = memory.estimate_memory(str(tmp_path), torch.bfloat16)
    assert (estimate.parameters, estimate.bytes) == (found.sizes[0].parameters, 2 * found.sizes[0].parameters)
    assert 2**20 < estimate.available < 2**50
    assert {*found.sizes[0].kv_bytes_per_token} == {kv_bytes_per_token(model)}
    assert (found.layers, found.layer) == (len(sizes), sizes[0])
    work = {name: seconds - memory.STARTUP for name, seconds in found.budget_seconds.items()}
    assert work["thorough"] == pytest.approx(5 * work["quick"], rel=0.1)  # 4.5 times the tokens, some of them sampled
    assert found.calibration_seconds - memory.STARTUP == pytest.approx(work["quick"] / (16 * 32))  # by tokens
    crossmodule = partial(require_no_output_norms, blocks(model), "crossmodule")
    for said, require in ((found.no_gguf, partial(require_deci_layers, model)), (found.no_crossmodule, crossmodule)):
        assert said == (refused(require) if said else require() or "")
    step = MULTIPLE * max(size.neuron_cost for size in sizes)
    for size in found.sizes[1:]:
        assert abs(case.plan(size.sparsity).parameters.sliced_total - size.parameters) <= step
        least, most = size.kv_bytes_per_token
        assert 0 <= least < most <= found.sizes[0].kv_bytes_per_token[0]


def test_the_command_prints_text_or_json_and_reads_no_weights(folder, capsys, monkeypatch):
    file = folder / "model.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    content = file.read_bytes()
    file.write_bytes(content[:header] + bytes([255]) * (len(content) - header))  # NaN
    monkeypatch.setattr("intraslice.pretrained.reader.AutoModelForCausalLM.from_pretrained", None)
    assert main(["check", str(folder)]) == 0
    text = capsys.readouterr().out
    words = ("llama, 3 layers", "30%", "memory:", "calibration:", "(--budget quick 0", "GGUF")
    assert [word for word in words if word not in text] == []
    assert main(["check", str(folder), "--json", "--dtype", "float32"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [size["sparsity"] for size in record["sizes"]] == [0, *SPARSITIES]
    assert all(size["bytes"] == 4 * size["parameters"] for size in record["sizes"])


def test_a_slice_is_no_model_to_slice(case, tmp_path, capsys):
    save_slice(case, "intraslice", tmp_path / "sliced")
    assert main(["check", str(tmp_path / "sliced")]) == 2
    assert "is sliced already; expected a dense model" in capsys.readouterr().err
