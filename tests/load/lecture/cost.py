"""`python -m tests.load.lecture.cost`: CPU time that the server takes for a move of the slider, with a class connected.

Sixty pages are open. All of them move at once, first each to a setting of its own, then to those that others have been
at. Nothing is calibrated: ratios and perplexities are those that the page ships with.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from components.state.settings import Settings
from intraslice.pretrained.precision import choose_dtype
from tests.load.lecture.students import Browser
from tests.support.page.browsing import running_app
from tests.support.page.calling import inputs_of

STUDENTS, ROUNDS = 60, 5


def main() -> None:
    """Start a page, move, and tell."""
    default = Settings(dtype=choose_dtype())
    settings = [default._replace(sparsity=percent) for percent in range(1, STUDENTS + 1)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"INTRASLICE_ROOMS": f"{folder}/rooms", "INTRASLICE_WARM": "0"}
        with (Path(folder) / "log").open("w") as log, running_app(output=log) as address:
            (server,) = psutil.Process().children()
            students = [Browser(address) for _ in settings]
            for student in students:
                student.open()
                student.cheap("ratios", inputs_of(default, 0, ""))
            with ThreadPoolExecutor(STUDENTS) as together:
                for name, shifts in {"first at its setting": range(1), "after others": range(1, ROUNDS)}.items():
                    before = sum(server.cpu_times()[:2])
                    for shift in shifts:
                        moves = [*settings[shift:], *settings[:shift]]
                        inputs = [inputs_of(at, 0, "") for at in moves]
                        list(together.map(lambda student, data: student.cheap("ratios", data), students, inputs))
                    used = (sum(server.cpu_times()[:2]) - before) / STUDENTS / len(shifts)
                    print(f"{name:20} {1e3 * used:5.1f} ms a move")
            for student in students:
                student.close()


if __name__ == "__main__":
    main()
