"""The command line: `python -m intraslice COMMAND`. Results on stdout, progress on stderr.

`torchrun --nproc-per-node N -m intraslice COMMAND` shares the work among N processes; the first prints the results.
"""

import json
import logging
import os
import sys

from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.errors import NumericalError, UserError
from intraslice.distributed import process_group
from intraslice.pretrained.precision import choose_device


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns 0, or with one line on stderr 2 for bad input or a file error, 130 if interrupted."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    arguments = parser().parse_args(argv)
    try:
        with process_group(choose_device(arguments.device)):
            result, text = arguments.run(Run(arguments))
            _print(json.dumps(result) if arguments.json else text)
    except (UserError, NumericalError, OSError) as error:
        print(f"python -m intraslice: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("python -m intraslice: interrupted", file=sys.stderr)
        return 130
    return 0


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever read stdout has left, as `head` does; Python's own last flush has to go elsewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
