"""The other side of `process.run_apart`: a process that bounds itself, then works. Knows the standard library alone."""

from __future__ import annotations

import json
import runpy
import sys

if sys.platform != "win32":
    import resource


def main() -> None:
    """Read a task from stdin, and write what its script's `answer` returns, or what went wrong, to stdout."""
    task = json.load(sys.stdin)
    if sys.platform != "win32":
        bounds = {"RLIMIT_CORE": 0, "RLIMIT_CPU": task["seconds"], "RLIMIT_AS": task["memory"]}
        for name, bound in bounds.items():
            try:
                # A second more until the process is killed: it ends by a signal that says why.
                resource.setrlimit(getattr(resource, name), (bound, bound + (name == "RLIMIT_CPU")))
            except (ValueError, OSError):  # macOS bounds no address space
                continue
    sys.path[:] = task["path"]
    try:
        result = {"answer": runpy.run_path(task["script"])["answer"](**task["given"])}
        written = json.dumps(result, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except MemoryError:
        written = json.dumps({"error": f"it takes more than {task['memory'] / 2**20:.0f} MiB"}).encode()
    except Exception as error:
        words = " ".join(str(error).split()) or type(error).__name__
        written = json.dumps({"error": words[:200]}).encode()
    sys.stdout.buffer.write(written)


if __name__ == "__main__":
    main()
