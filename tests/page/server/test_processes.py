"""The page's process: what it leaves behind when it ends, the page as a Hugging Face Space, and the wheel.

The wheel has library and page with all their files, and its commands start from an empty folder.
"""

import contextlib
import email
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from browsing import ROOT, copy_app, free_port, serving
from calling import inputs_of
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.version import Version
from space_cards import COLOURS, KEYS

import intraslice
from components.jobs.job import Scheduler
from components.server import process
from components.server.app import App
from components.state.settings import Settings
from intraslice.core.cache import cache_folder
from intraslice.pretrained.sources import DEFAULT, SUGGESTED_MODELS
from intraslice.token_windows import WIKITEXT


@pytest.mark.parametrize(("display", "terminal"), [(True, True), (True, False), (False, True)])
def test_a_browser_opens_only_for_whoever_sits_there(display, terminal, monkeypatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: terminal))
    assert process.has_browser() == (display and terminal)


# Told to end, the page ends: at once, with exit status 0, and with nothing left behind

BUSY = """
import os, time
import torch
from components import start
from components.server import process


def multiplying(job):
    product = torch.eye(300)
    print("busy", flush=True)
    while not os.path.exists(os.environ["IS_OPEN"]):  # or opening would take twice as long
        time.sleep(0.05)
    while True:
        product = torch.mm(product, product)
        if {checkpoints}:
            job.checkpoint()


def with_a_busy_session(open_folder=process.open_temporary_folder):
    open_folder()  # before gradio is imported
    from components import page

    class Busy(page.Session):
        def __init__(self):
            super().__init__()
            self.jobs.scheduler.start("somebody", multiplying)

    page.Session = Busy

process.open_temporary_folder = with_a_busy_session
start.main()
"""
STARTING = """
import runpy
from components.server import process


def on_signal():
    set_up()
    print("starting", flush=True)

set_up, process.on_signal = process.on_signal, on_signal
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        pytest.param(STARTING, 0.3, id="starting"),
        pytest.param(BUSY.format(checkpoints=False), None, id="one endless step"),
        pytest.param(BUSY.format(checkpoints=True), None, id="steps", marks=pytest.mark.slow),
    ],
)
def test_told_to_end_it_ends(script, seconds, tmp_path) -> None:
    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(tmp_path)}
    environment["IS_OPEN"] = f"{tmp_path}.open"
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, **output)
    try:
        process.stdout.readline()  # the signal is expected from here on
        while seconds is None:  # until it is open
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                seconds = 1.0
                Path(environment["IS_OPEN"]).touch()
            time.sleep(0.1)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "terminate" not in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] in ([], [".lock"])


PAGE = """
import os, time
from components.server import process
process.on_signal()
folder = process.open_temporary_folder()
assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
(folder / "upload").mkdir()
(folder / "upload" / "text.txt").write_text("x")
print(folder, flush=True)
time.sleep(60)
"""


def start_page(home: Path) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", PAGE], cwd=ROOT, env={"GRADIO_TEMP_DIR": str(home)}, stdout=subprocess.PIPE, text=True
    )
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_page_leaves_nothing_behind_and_spares_what_another_has(how, tmp_path) -> None:
    first, folder = start_page(tmp_path)
    other, others = start_page(tmp_path)
    try:
        assert folder != others
        assert (folder / "upload" / "text.txt").is_file()
        first.send_signal(how)
        first.wait()
        assert folder.exists() == (how is signal.SIGKILL)
        third, _ = start_page(tmp_path)
        third.kill()
        third.wait()
        assert not folder.exists()
        assert (others / "upload" / "text.txt").is_file()
    finally:
        for process in (first, other):
            process.kill()
            process.wait()


CARD = SpaceCard.load(ROOT / "README.md").data.to_dict()
HARDWARE = {"cpu-basic", "cpu-upgrade", "t4-small", "t4-medium", "l4x1", "a10g-small", "a10g-large", "a100-large"}


def test_the_card_is_one_that_the_hub_takes_and_names_what_the_page_loads() -> None:
    assert set(CARD) <= KEYS
    assert {CARD["colorFrom"], CARD["colorTo"]} <= COLOURS
    assert CARD["sdk"] == "gradio"
    assert re.fullmatch(r"\d+\.\d+\.\d+", CARD["sdk_version"])
    assert re.fullmatch(r"3\.1[1-3]", CARD["python_version"])
    assert len(CARD["short_description"]) <= 60
    assert CARD["suggested_hardware"] in HARDWARE
    assert re.fullmatch(r"\d+(\.\d+)?[smhd]", CARD["startup_duration_timeout"])
    assert "mcp-server" in CARD["tags"]
    assert (ROOT / CARD["app_file"]).is_file()
    assert (ROOT / CARD["thumbnail"]).read_bytes().startswith(b"\x89PNG")
    assert CARD["models"] == [name for name in SUGGESTED_MODELS if name != DEFAULT]
    assert CARD["datasets"] == [WIKITEXT]


def test_behind_a_proxy_the_page_knows_its_prefix_and_offers_its_tools(launch, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    with App(Scheduler()) as page:
        gr.HTML("")
    client = launch(page, root_path="/lab/app")
    assert client.config()["root"].endswith("/lab/app")
    assert client.http.get(f"{client.address}healthz").json()["ok"]
    assert page.mcp_server


def as_anybody() -> list[str]:
    """The words before a command that take root's rights away, where there are any to take."""
    if os.geteuid() or not shutil.which("setpriv"):
        return []
    # An interpreter in root's own folder cannot be run by others: then root goes on, but without its privileges.
    for words in (["--reuid=65534", "--regid=65534", "--clear-groups"], ["--bounding-set=-all", "--inh-caps=-all"]):
        tried = [shutil.which("setpriv"), *words]
        if not subprocess.run([*tried, sys.executable, "-c", "import gradio_client"], capture_output=True).returncode:
            return tried
    return []


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that others can look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def space(home) -> Iterator[tuple[str, subprocess.Popen]]:
    """`python app.py` as a Space has it: no rights, nothing to write but the cache folder, 16 GiB, no network."""
    wheels = cache_folder() / "wheels"
    if not wheels.is_dir():
        pytest.skip("the wheels are not in the cache")
    source, cache, blocked = (home / name for name in ("source", "cache", "blocked"))
    copy_app(source)
    shutil.copytree(wheels, cache / "wheels")
    (cache / "tmp").mkdir()
    blocked.mkdir()  # what only the tests require is not there
    files = ("tests/requirements.txt", "requirements.txt")
    tests, page = ({one.name.replace("-", "_") for one in requirements(file)} for file in files)
    lines = [f"sys.modules[{name!r}] = None" for name in sorted(tests - page)]
    (blocked / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    for path in (home, *cache.rglob("*"), cache):
        path.chmod(0o777 if path == cache or cache in path.parents else 0o755)
    for path in (source, *source.rglob("*"), blocked, *blocked.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    environment |= {
        "SPACE_ID": "somebody/intraslice",
        "HOME": str(source),
        "TMPDIR": str(cache / "tmp"),
        "PYTHONPATH": str(blocked),
        "PYTHONDONTWRITEBYTECODE": "1",
        "INTRASLICE_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    prlimit = [shutil.which("prlimit"), f"--as={16 * 2**30}"] if shutil.which("prlimit") else []
    with serving([*prlimit, *as_anybody(), sys.executable, "app.py"], environment, cwd=source) as served:
        yield served
    for path in (source, *source.rglob("*"), blocked):
        path.chmod(0o755)


@pytest.mark.slow
def test_a_space_paints_measures_and_ends(space, home) -> None:
    address, app = space
    assert "gradio" in httpx.get(address).text
    assert httpx.get(f"{address}/healthz").json()["ok"]
    api = f"{address}/gradio_api"
    # A calibration whose numbers are not stored; and the layer, and that nothing is pinned.
    asked = inputs_of(Settings(dtype="float32", sequences=4, length=128), 0, "")
    event = httpx.post(f"{api}/call/measure_live", json={"data": asked}).json()["event_id"]
    with httpx.stream("GET", f"{api}/call/measure_live/{event}", timeout=300) as stream:
        for line in stream.iter_lines():
            assert not line.startswith("event: error"), line
            said = str(json.loads(line[6:])) if line.startswith("data: ") else ""
            if measured := re.search(r"perplexity</span> <b>[\d.]+</b> → <b>[\d.]+", said):
                break
    assert measured
    app.send_signal(signal.SIGTERM)
    assert app.wait(timeout=30) == 0
    temporary = home / "cache" / "tmp"
    left = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()]
    assert left in ([], ["gradio/.lock"])  # which all processes share


INSTALLED = {"intraslice": "intraslice", "components": "intraslice_explorer", "assets": "intraslice_explorer/assets"}
VERSION = intraslice.__version__
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('dist')"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing is left in the clone and nothing left there gets in."""
    source = tmp_path_factory.mktemp("source")
    copy_app(source, "pyproject.toml", "LICENSE")
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


def test_it_has_every_file_of_library_and_page_in_two_packages(wheel) -> None:
    expected = set()
    for folder, package in INSTALLED.items():
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        expected |= {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    with zipfile.ZipFile(wheel) as opened:
        found = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {name.partition("/")[0] for name in found} == {"intraslice", "intraslice_explorer"}


def test_it_says_what_it_is_and_what_it_wants(wheel) -> None:
    with zipfile.ZipFile(wheel) as opened:
        place = f"intraslice_explorer-{VERSION}.dist-info"
        about = email.message_from_bytes(opened.read(f"{place}/METADATA"))
        commands = opened.read(f"{place}/entry_points.txt").decode()
    assert about["Version"] == VERSION
    required = {Requirement(line) for line in about.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == set(requirements("requirements.txt"))
    assert dict(re.findall(r"(\S+) = (\S+)", commands)) == {
        "intraslice": "intraslice.__main__:main",
        "intraslice-explorer": "intraslice_explorer.start:main",
        "device": "intraslice_explorer.intraslice_commands.device",
        "publish": "intraslice_explorer.intraslice_commands.publish",
    }


def requirements(file: str) -> list[Requirement]:
    return [Requirement(line) for line in (ROOT / file).read_text(encoding="utf-8").split()]


@pytest.mark.parametrize("file", ["requirements.txt", "tests/requirements.txt", "docs/requirements.txt"])
def test_every_requirement_has_a_lower_and_an_upper_bound_around_what_is_installed(file) -> None:
    if file.startswith("docs"):
        pytest.importorskip("sphinx")
    for requirement in requirements(file):
        assert sorted(bound.operator for bound in requirement.specifier) == ["<", ">="], requirement
        assert requirement.specifier.contains(version(requirement.name)), requirement


def test_gradio_is_bounded_by_the_version_after_the_one_of_a_space_and_the_changelog_has_this_version() -> None:
    (gradio,) = (one for one in requirements("requirements.txt") if one.name == "gradio")
    (runs,) = re.findall(r"^sdk_version: (.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    (upper,) = (Version(bound.version) for bound in gradio.specifier if bound.operator == "<")
    assert gradio.specifier.contains(runs)
    assert (upper.major, upper.minor) == (Version(runs).major, Version(runs).minor + 1)
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(VERSION)}\] - \d{{4}}-\d\d-\d\d", headings[1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]  # it stands in `intraslice/__init__.py` alone


@pytest.fixture
def commands(wheel, tmp_path) -> Path:
    """The folder of the commands in an environment of its own, whose requirements are this one's."""
    home, python = tmp_path / "venv", tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, wheel], check=True)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip()
    (Path(site) / "requirements.pth").write_text(sysconfig.get_path("purelib"))
    return home / "bin"


@pytest.fixture
def served(commands, tmp_path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The page as its command starts it, in an empty folder: its address and its process."""
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["INTRASLICE_CACHE"] = str(tmp_path / "cache")
    with serving([commands / "intraslice-explorer"], environment, cwd=tmp_path / "empty") as started:
        yield started


@pytest.mark.slow
def test_its_commands_run_anywhere(commands, served, tmp_path) -> None:
    address, page = served
    for words, answer in ((["--version"], f"{VERSION}\n"), (["publish", "--help"], "the slider's steps")):
        told = subprocess.run([commands / "intraslice", *words], cwd=tmp_path, capture_output=True, text=True)
        assert answer in told.stdout, told.stderr
    text = httpx.get(address).text
    assert httpx.get(f"{address}/healthz").json()["ok"]
    config = httpx.get(f"{address}/config").text
    files = (re.search(rf'[^\s"\\>]*{name}[^\s"\\>]*', text)[0] for name in (r"isx\.js", r"isx\.css", r"plotly\.min"))
    script, styles, plotly = (httpx.get(f"{address}/{file}").text for file in files)
    for place, asset in ((script, "tour.js"), (script, "chart.js"), (config, "page.css"), (styles, "presenter.css")):
        first = (ROOT / "assets" / asset).read_text(encoding="utf-8").splitlines()[0]
        assert first[:40] in place, asset
    assert "plotly.js" in plotly[:200]
    page.send_signal(signal.SIGTERM)
    assert page.wait(timeout=10) == 0
    assert list((tmp_path / "empty").iterdir()) == []
