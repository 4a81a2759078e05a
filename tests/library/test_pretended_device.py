"""Every stage on a device that is not the CPU, with real values: nothing is created or combined on the wrong one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from tiny_models import FAMILIES

SUPPORT = Path(__file__).parents[1] / "support" / "library"


def problems(arguments: Iterable[str]) -> dict[str, str]:
    """What `pretended_stages.py` finds, in a process of its own, since the device stays known to torch."""
    command = [sys.executable, str(SUPPORT / "pretended_stages.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("names", [["gemma3"], pytest.param(list(FAMILIES), marks=pytest.mark.slow)])
def test_all_stages_run_on_another_device(names):
    found = {name: problem for name, problem in problems(names).items() if problem}
    assert not found, "\n".join(found.values())


@pytest.mark.slow
def test_a_tensor_without_a_device_is_found_in_every_stage():
    for stage, problem in problems(["--planted"]).items():
        assert "in planted" in problem, stage
        assert "got tensors on pretended and on the CPU" in problem, stage
