"""Processes untrusted data in a subprocess with limits on memory and time.

The subprocess runs a script of this folder, which imports one library and nothing of this package. On Windows, which
cannot limit the memory of a process, only the time is limited.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# Further threads would only take memory; the system allocator fails at the memory limit.
SET_VARIABLES = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")  # others may hold secrets
TIMEOUT_FACTOR = 4  # wall-clock limit over the limit on CPU seconds, for busy machines


@dataclass(frozen=True)
class Bounds:
    """Resource limits of a process."""

    memory: int  # bytes of address space
    seconds: int  # of CPU time


def run_in_subprocess(script: str, bounds: Bounds, **arguments: Any) -> Any:
    """Call the function `run` of a script in this folder in a subprocess. Arguments and result are JSON.

    Raises ValueError, with a clause about the input, where the script failed or exceeded a limit.
    """
    task = {"path": sys.path, "script": str(HERE / f"{script}.py"), "arguments": arguments, **asdict(bounds)}
    # Megabytes from a pipe come in small reads, between which no other thread of this process gets its turn.
    with tempfile.TemporaryFile() as output:
        try:
            completed = subprocess.run(
                [sys.executable, "-I", str(HERE / "child.py")],
                input=json.dumps(task).encode(),
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_FACTOR * bounds.seconds,
                env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | SET_VARIABLES,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"it takes more than {TIMEOUT_FACTOR * bounds.seconds} s") from None
        output.seek(0)
        answer = output.read()
    if completed.returncode == -getattr(signal, "SIGXCPU", 0) != 0:
        raise ValueError(f"it takes more than {bounds.seconds} s")
    if completed.returncode:  # some libraries abort the process when they run out of memory
        raise ValueError(f"it takes more than {bounds.memory / 2**20:.0f} MiB, or crashes the library that reads it")
    result = json.loads(answer.decode("utf-8", "surrogatepass"))
    if "error" in result:
        raise ValueError(result["error"])
    return result["result"]
