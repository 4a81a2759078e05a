"""Work on what strangers brought, in a process of its own that is ended when it takes too much memory or time.

What runs there is a script of this folder, which imports one library and nothing of ours. Where the platform cannot
bound a process (Windows), its time is bounded all the same.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Threads of its own would take memory for nothing; the system's allocator gives up where the bound is.
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
KEPT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")  # of the environment, which has secrets
WAITING = 4  # times the seconds of work that pass on a busy machine until it is done


@dataclass(frozen=True)
class Bounds:
    """What a process may take."""

    memory: int  # bytes of address space
    seconds: int  # of work


def run_apart(script: str, bounds: Bounds, **given: Any) -> Any:
    """What the function `answer` of a script in this folder makes of `given`, in a process of its own. All is JSON.

    Raises:
        ValueError: it went wrong, or took too much; the message says which, as part of a sentence.
    """
    task = {"path": sys.path, "script": str(HERE / f"{script}.py"), "given": given, **asdict(bounds)}
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(HERE / "child.py")],
            input=json.dumps(task).encode(),
            capture_output=True,
            check=False,
            timeout=WAITING * bounds.seconds,
            env={name: os.environ[name] for name in KEPT if name in os.environ} | QUIET,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {WAITING * bounds.seconds} s") from None
    if done.returncode == -getattr(signal, "SIGXCPU", 0) != 0:
        raise ValueError(f"it takes more than {bounds.seconds} s")
    if done.returncode:  # libraries that cannot go on without memory end the process
        raise ValueError(f"it takes more than {bounds.memory / 2**20:.0f} MiB, or breaks what reads it")
    result = json.loads(done.stdout.decode("utf-8", "surrogatepass"))
    if "error" in result:
        raise ValueError(result["error"])
    return result["answer"]
