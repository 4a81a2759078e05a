"""The whole main job on the real default model and real text; and every stage on a device that is not the CPU.

And the real phi-1_5, where a Hub answers: `HF_HUB_OFFLINE=0 python -m pytest -m hub`. It needs about 12 GB of memory.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from intraslice import (
    CalibrationConfig,
    EvaluationConfig,
    SliceConfig,
    calibrate,
    calibration_tokens,
    compress,
    evaluation_tokens,
    generate_text,
    load_model,
    make_plan,
    perplexity,
    slice_model,
)
from intraslice.__main__ import main
from intraslice.core.cache import cache_folder
from intraslice.pretrained.hub import hub_is_reachable
from intraslice.pretrained.sources import find_weights, obtain_weights

ROOT = Path(__file__).parents[2]
SMALL = ["--sequences", "8", "--length", "128", "--eval-tokens", "256", "--json"]


def answer(capsys: pytest.CaptureFixture, *words: str) -> dict:
    assert main([*words, *SMALL]) == 0
    return json.loads(capsys.readouterr().out)


def test_calibrate_slice_save_reload_and_evaluate(capsys, default_model, tmp_path):
    folder = str(tmp_path / "sliced")
    calibration, evaluation = CalibrationConfig(sequences=8, length=128), EvaluationConfig(tokens=256, window=128)
    compressed = compress("default", 0.2, calibration=calibration, evaluation=evaluation, progress=False)
    found = compressed.evaluate(progress=False)
    dense, sliced = found.dense_perplexity.value, found.perplexity.value
    assert 10 < dense < 30
    assert dense < sliced < 4 * dense
    assert compressed.plan.removed_fraction == pytest.approx(0.2, abs=0.01)
    assert len(compressed.plan.layers) == 30

    compressed.save_pretrained(folder)
    reloaded = answer(capsys, "evaluate", "--model", folder)
    # In bfloat16 the same weights elsewhere in memory may be multiplied by another kernel.
    assert reloaded["perplexity"]["sliced"] == pytest.approx(sliced, rel=1e-3)
    counts = reloaded["parameters"]
    assert counts["dense_total"] == sum(p.numel() for p in default_model.model.parameters())
    assert counts["sliced_total"] == sum(p.numel() for p in compressed.model.parameters())
    assert counts["dense_total"] - counts["sliced_total"] == counts["dense_decoder"] - counts["sliced_decoder"]
    assert reloaded["kv_bytes_per_token"]["sliced"] < reloaded["kv_bytes_per_token"]["dense"]
    size = sum(file.stat().st_size for file in Path(folder).iterdir())
    assert size < 4 * counts["sliced_total"] + 6_000_000  # float32, and the tokenizer


@pytest.mark.slow
def test_the_readmes_example_runs(capsys, monkeypatch, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert "perplexity" in capsys.readouterr().out
    assert (tmp_path / "sliced" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_whole_run_keeps_within_its_memory(default_model, tmp_path):
    for name in ("models", "wheels"):
        (tmp_path / name).symlink_to(cache_folder() / name)  # only calibrations are new
    options = ["--sequences", "2", "--eval-tokens", "1024", "--json"]  # more sequences need no more
    command = [sys.executable, "-m", "intraslice", "evaluate", *options]
    environment = os.environ | {"INTRASLICE_CACHE": str(tmp_path)}
    result = subprocess.run(command, check=True, capture_output=True, env=environment)
    assert list((tmp_path / "calibration").iterdir())
    assert json.loads(result.stdout)["peak_rss_bytes"] < 3.4 * 2**30


@pytest.mark.slow
def test_the_peak_is_the_processs_own():
    held = bytearray(2**30)  # a child's ru_maxrss would begin here
    held[::4096] = b"x" * len(held[::4096])
    words = "from intraslice.cli.run import peak_memory; print(peak_memory())"
    result = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    assert 2**26 < int(result.stdout) < len(held)


@pytest.mark.parametrize("names", [["gemma3"], pytest.param(list(FAMILIES), marks=pytest.mark.slow)])
def test_all_stages_run_on_another_device(names):
    """In a process of its own, since the device stays known to torch."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(ROOT / "tests/support/library/pretended_stages.py"), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [problem for problem in json.loads(done.stdout.splitlines()[-1]).values() if problem]
    assert not found, "\n".join(found)


PHI = "microsoft/phi-1_5"


@pytest.mark.hub
@pytest.mark.slow
@pytest.mark.timeout(3600)
@torch.no_grad()
def test_the_real_phi_is_transformers_own_model_and_still_speaks_with_a_fifth_less():
    if find_weights(PHI) is None and not hub_is_reachable():
        pytest.skip("phi-1_5 is not in the local cache and no Hub answers; HF_HUB_OFFLINE=0 lets it be asked")
    phi = load_model(PHI)
    tokens = phi.tokenizer("def fibonacci(n):\n    if n < 2:\n        return n", return_tensors="pt").input_ids
    own = AutoModelForCausalLM.from_pretrained(obtain_weights(PHI).folder, dtype=torch.float32)
    assert_close(phi.model(tokens).logits, own(tokens).logits, atol=1e-3, rtol=1e-4)
    del own
    tokens = calibration_tokens(phi.tokenizer, CalibrationConfig(sequences=16, length=256))
    windows = evaluation_tokens(phi.tokenizer, EvaluationConfig(tokens=2048, window=256))
    stats = calibrate(phi, tokens, progress=False)
    values = {"dense": perplexity(phi.model, windows, progress=False)}
    for order in ("one-shot", "sequential"):
        plan = make_plan(stats.profile, SliceConfig(0.2, order=order))
        model = slice_model(phi.model, plan, stats, tokens, progress=False)
        decoder = sum(p.numel() for p in model.model.layers.parameters())
        assert 1 - decoder / plan.parameters.dense_decoder == pytest.approx(0.2, abs=0.01)
        values[order] = perplexity(model, windows, progress=False)
        assert "".join(generate_text(model, phi.tokenizer, "The capital of France is", 8)).strip()
    print(values)  # shown with -s
    assert values["dense"] < min(values["one-shot"], values["sequential"])
    assert max(values["one-shot"], values["sequential"]) < 2 * values["dense"]
