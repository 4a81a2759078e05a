"""How many faults the tests notice: `python -m tests.mutate --seed 1 --count 60`, in a copy of the repository.

Draws statements of `intraslice/` and `components/`, weighted by lines, and plants one fault at a time. The tests of its
package meet it first; if these pass, all tests that import its module, directly or not, the direct ones first.
"""

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grimp

ROOT = Path(__file__).parent.parent
TESTS = {"intraslice": "tests/library", "components": "tests/page"}
PAIRS = [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)]
PAIRS += [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.And, ast.Or)]
OTHER = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}
HEADS = {ast.If: "test", ast.While: "test", ast.For: "iter", ast.Match: "subject"}  # of compound statements
PASSED_OVER = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try, ast.With)


class Fault(NamedTuple):
    """What stands in a file instead of the bytes from `start` to `end`."""

    file: Path
    line: int
    kind: str
    start: int
    end: int
    text: str


def variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may be wrong in a node itself."""
    wrong = copy.deepcopy(node)
    match wrong:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OTHER:
            wrong.op = OTHER[type(op)]()
            yield "sign", wrong
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign", wrong.operand
        case ast.Compare(ops=[op, *_]) if type(op) in OTHER:
            wrong.ops[0] = OTHER[type(op)]()
            yield "comparison", wrong
        case ast.Constant(value=bool()):
            yield "negated", ast.Constant(not wrong.value)
        case ast.Constant(value=int()):
            yield "off by one", ast.Constant(wrong.value + 1)
        case ast.IfExp():
            wrong.test = ast.UnaryOp(ast.Not(), wrong.test)
            yield "negated", wrong
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            wrong.slice = ast.Constant(f"{key}_")
            yield "wrong key", wrong
        case ast.Dict(keys=[ast.Constant(value=str(key)), *_]):
            wrong.keys[0] = ast.Constant(f"{key}_")
            yield "wrong key", wrong
        case ast.Call(args=[first, second, *_]) if not {type(first), type(second)} & {ast.Starred, ast.Lambda}:
            wrong.args[:2] = second, first
            yield "swapped arguments", wrong


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """The node and what is below it, but for annotations and f-strings."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name != "annotation" and not isinstance(child, ast.JoinedStr):
                yield from parts(child)


def faults_of(statement: ast.stmt, file: Path, starts: list[int]) -> Iterator[Fault]:
    """All faults of one statement; of a compound one, of its head. `starts` has the place of each line."""

    def fault(kind: str, old: ast.AST, text: str) -> Fault:
        start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
        return Fault(file, old.lineno, kind, start, end, text)

    head = HEADS.get(type(statement))
    root = getattr(statement, head) if head else statement
    if head == "test":
        yield fault("negated", root, f"not ({ast.unparse(root)})")
    is_local = isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name | ast.Tuple)
    if isinstance(statement, ast.Expr | ast.AugAssign | ast.Raise | ast.Assign) and not is_local:
        yield fault("dropped", statement, "pass")
    for node in parts(root):
        for kind, wrong in variants(node):
            yield fault(kind, node, ast.unparse(wrong) if isinstance(node, ast.stmt) else f"({ast.unparse(wrong)})")


def draw(seed: int, count: int) -> list[Fault]:
    """A fault in each of so many statements."""
    statements, weights = [], []
    for file in sorted(path for package in TESTS for path in (ROOT / package).rglob("*.py")):
        source = file.read_bytes()
        starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
        for node in ast.walk(ast.parse(source)):
            is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if not isinstance(node, ast.stmt) or isinstance(node, PASSED_OVER) or is_docstring:
                continue
            if faults := list(faults_of(node, file.relative_to(ROOT), starts)):
                statements.append(faults)
                weights.append(1 if type(node) in HEADS else node.end_lineno - node.lineno + 1)
    dice, drawn = random.Random(seed), {}
    while len(drawn) < min(count, len(statements)):
        (number,) = dice.choices(range(len(statements)), weights)
        drawn.setdefault(number, dice.choice(statements[number]))
    return list(drawn.values())


def imports(file: Path) -> set[str]:
    """What a file may import: of `from a import b`, both `a` and `a.b`."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    whole = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    sources = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return whole | {
        name for node in sources for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))
    }


def importers(module: str) -> list[str]:
    """Files of tests that import a module, the direct ones first."""
    known = {module, *grimp.build_graph(*TESTS, cache_dir=None).find_downstream_modules(module)}
    files = {file: imports(file) for file in sorted((ROOT / "tests").rglob("*.py"))}
    known |= {file.stem for file, found in files.items() if "support" in file.parts and found & known}
    tests = [file for file, found in files.items() if file.name.startswith("test_") and found & known]
    return [str(file.relative_to(ROOT)) for file in sorted(tests, key=lambda file: module not in files[file])]


def failure(root: Path, tests: list[str], seconds: float) -> str:
    """The first test that fails there, or that stops all others by its time; else nothing."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--timeout=300", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}  # that of a fault of the same size would stay
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return ""
    summary = done.stdout.rpartition(" summary info ")[2]
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?:@[\w ]+)?(?: - .*)?$", summary, re.MULTILINE)
    return failed[1] if failed else tests[0] if done.returncode not in (0, 5) else ""  # 5: none is selected


def noticed_by(root: Path, fault: Fault, seconds: float) -> str:
    """The test that fails with a fault and passes without it, or nothing."""
    package, *names = fault.file.with_suffix("").parts
    own, sound = root / TESTS[package] / names[0], (root / fault.file).read_bytes()
    module = ".".join((package, *names)).removesuffix(".__init__")
    first = [str(path) for path in (own, *own.parent.glob(f"test_{names[0]}*.py")) if path.exists()]
    for tests in (first, importers(module)):
        (root / fault.file).write_bytes(sound[: fault.start] + fault.text.encode() + sound[fault.end :])
        failed = failure(root, tests, seconds) if tests else ""
        (root / fault.file).write_bytes(sound)
        if failed and not failure(root, [failed], seconds):
            return failed
    return ""


def main() -> None:
    """Plant every fault, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=900.0, help="for the tests that meet a fault")
    arguments = parser.parse_args()
    faults, noticed = draw(arguments.seed, arguments.count), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "repository"
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns("__pycache__", ".*_cache"), symlinks=True)
        print("| place | fault | noticed by |\n|---|---|---|")
        for fault in faults:
            old = (ROOT / fault.file).read_bytes()[fault.start : fault.end].decode()
            words = " ".join(f"{old} → {fault.text}".split()).replace("|", "\\|")
            test = noticed_by(root, fault, arguments.seconds)
            noticed += bool(test)
            print(f"| {fault.file}:{fault.line} | {fault.kind}: {words[:160]} | {test or 'survived'} |", flush=True)
    print(f"\n{noticed} of {len(faults)} noticed, {noticed / len(faults):.0%}")


if __name__ == "__main__":
    main()
