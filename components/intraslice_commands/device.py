"""report whether the WebAssembly files for models in the browser are in the cache; --fetch downloads them"""

import argparse

from intraslice.cli.run import CommandResult, Run

UNUSED = "model slicing calibration evaluation"  # options of all commands


def add_options(command: argparse.ArgumentParser) -> None:
    """Add this command's own option."""
    explanation = "download the files now; by default the page downloads them when they are first needed"
    command.add_argument("--fetch", action="store_true", help=explanation)


def run(run: Run) -> CommandResult:
    """Download the files if asked, and report whether they are in the cache."""
    from ..device import wllama  # imported here, since every command imports this module

    if run.arguments.fetch:
        wllama.fetch()
    is_fetched = wllama.is_fetched()
    result = {"package": wllama.PACKAGE, "version": wllama.VERSION, "licence": wllama.LICENCE, "fetched": is_fetched}
    state = f"in {wllama.folder()}" if is_fetched else "not fetched"
    return result, f"{wllama.PACKAGE} {wllama.VERSION} ({wllama.LICENCE}): {state}"
