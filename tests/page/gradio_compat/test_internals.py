"""Only `components/gradio_compat/` uses what gradio does not document. Read off the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import gradio

ROOT = Path(__file__).parents[3]
COMPAT = ROOT / "components" / "gradio_compat"
# Modules, without those that are documented as attributes of gradio.
INTERNAL = {path.stem for path in Path(gradio.__file__).parent.iterdir() if path.is_dir() or path.suffix == ".py"}
INTERNAL -= {"components", "events", "themes"}
NAMED_TUPLE = {"_asdict", "_fields", "_replace"}


def internals(text: str) -> Iterator[str]:
    """What a file uses of gradio's internals: modules, attributes of other objects that begin with `_`, `__class__`."""
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    stored = [node for node in nodes if isinstance(node, ast.Attribute) and _is_stored(node)]
    own |= {node.attr for node in stored if getattr(node.value, "id", "") in ("self", "cls")}
    own |= {getattr(node.target, "id", "") for node in nodes if isinstance(node, ast.AnnAssign)}
    modules = {alias.asname or alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(("gradio.", "gradio_client")))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("gradio", "gradio_client"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name, base = node.attr, getattr(node.value, "id", "")
            is_private = name.startswith("_") and not name.startswith("__")
            if base == "gr" and name.islower() and name in INTERNAL:
                yield f"gr.{name}"
            is_foreign = is_private and base not in modules and name not in own | NAMED_TUPLE
            if is_foreign or (name in ("__class__", "__signature__") and _is_stored(node)):
                yield name


def _is_stored(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store | ast.Del)


def test_no_other_file_uses_gradios_internals() -> None:
    files = {ROOT / "app.py", *(ROOT / "components").rglob("*.py")}
    assert len(files) > 90
    found = {
        str(path.relative_to(ROOT)): sorted(set(internals(path.read_text(encoding="utf-8"))))
        for path in files
        if COMPAT not in path.parents
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_planted_uses_are_found() -> None:
    for line, name in {
        "from gradio.context import LocalContext": "gradio.context.LocalContext",
        "from gradio_client.utils import traverse": "gradio_client.utils.traverse",
        "import gradio.utils": "gradio.utils",
        "import gradio as gr\nfolder = gr.utils.get_upload_folder()": "gr.utils",
        "def events(page):\n    return page._queue": "_queue",
        "class Page(gr.Blocks):\n    def calls(self):\n        return self._queue": "_queue",
        "page._queue = None": "_queue",
        "page.default_config.__class__ = dict": "__class__",
        "function.__signature__ = None": "__signature__",
    }.items():
        assert name in set(internals(line)), line


def test_each_workaround_names_versions_and_a_test_that_exists() -> None:
    files = [path for path in COMPAT.rglob("*.py") if path.name != "__init__.py"]
    assert len(files) >= 9
    for path in files:
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "Tried with gradio 6." in words, path
        named = [word.strip("`.,") for word in words.split() if word.strip("`.,").startswith("tests/")]
        assert named, path
        assert any("def test_plain_gradio_" in (ROOT / name).read_text(encoding="utf-8") for name in named), path
