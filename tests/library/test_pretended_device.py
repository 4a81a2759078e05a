"""Every stage on a device that is not the CPU, with real values: nothing is created or combined on the wrong one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import FAMILIES

SUPPORT = Path(__file__).parents[1] / "support" / "library"


@pytest.mark.parametrize("names", [["gemma3"], pytest.param(list(FAMILIES), marks=pytest.mark.slow)])
def test_all_stages_run_on_another_device(names):
    """In a process of its own, since the device stays known to torch."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SUPPORT / "pretended_stages.py"), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [problem for problem in json.loads(done.stdout.splitlines()[-1]).values() if problem]
    assert not found, "\n".join(found)
