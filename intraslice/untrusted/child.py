"""The child process of `process.run_in_subprocess`: sets its limits, runs a script. Standard library only."""

import json
import runpy
import sys

if sys.platform != "win32":
    import resource


def main() -> None:
    """Read a task from stdin, call `run` of its script, and write the result or the error to stdout."""
    task = json.load(sys.stdin)
    if sys.platform != "win32":
        bounds = {"RLIMIT_CORE": 0, "RLIMIT_CPU": task["seconds"], "RLIMIT_AS": task["memory"]}
        for name, bound in bounds.items():
            try:
                # The hard limit on time is a second later, so that the process ends by SIGXCPU, not by SIGKILL.
                resource.setrlimit(getattr(resource, name), (bound, bound + (name == "RLIMIT_CPU")))
            except (ValueError, OSError):  # macOS cannot limit the address space
                continue
    sys.path[:] = task["path"]
    try:
        result = {"result": runpy.run_path(task["script"])["run"](**task["arguments"])}
        output = json.dumps(result, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except MemoryError:
        output = json.dumps({"error": f"it takes more than {task['memory'] / 2**20:.0f} MiB"}).encode()
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        output = json.dumps({"error": message[:200]}).encode()
    sys.stdout.buffer.write(output)


if __name__ == "__main__":
    main()
