"""The wheel: it has library and page with all their files, and its commands start from an empty folder."""

import email
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from browsing import ROOT, copy_app, serving
from packaging.requirements import Requirement
from packaging.version import Version

import intraslice

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
