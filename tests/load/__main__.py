"""`python -m tests.load --lecture 60`: a class on a hosted page; prints one table."""

import argparse

from tests.load.lecture.report import hold


def main() -> None:
    """Read the command line, and hold the lecture."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--lecture", type=int, metavar="STUDENTS", default=60)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rest", type=float, default=60.0, help="seconds from the end to the last look at memory")
    parser.add_argument("--checked", type=int, default=1000, help="settings that are computed again")
    arguments = parser.parse_args()
    hold(arguments.lecture, arguments.seconds, arguments.rest, arguments.checked)


if __name__ == "__main__":
    main()
