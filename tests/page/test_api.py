"""The page from another program: every endpoint has a name and words, and the examples of docs/usage.md run."""

import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas
import pytest
from calling import inputs_of
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from pandas.testing import assert_frame_equal
from tiny_page import tiny_settings

from components import limits
from components.export import files
from components.jobs.job import Job
from components.jobs.status import Status
from components.page import build_app, launch_options
from components.state.session import Session
from components.state.settings import Settings
from intraslice.checkpoints.format import RECORD

ROOT = Path(__file__).parents[2]
EXAMPLES = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "usage.md").read_text(encoding="utf-8"), re.S)[1]


@pytest.fixture(scope="module")
def session(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> Iterator[Session]:
    """That of a page which opens with a tiny model."""
    home = tmp_path_factory.mktemp("api")
    tiny = tiny_settings(home, tiny_llama_gqa, word_tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        patch.setattr(Settings.__new__, "__defaults__", tuple(tiny))
        session = Session(evaluation_tokens=256)
        session.texts = (tiny.text,)
        yield session


@pytest.fixture(scope="module")
def address(session, launch_once) -> str:
    return launch_once(build_app(session), **launch_options()).address


@pytest.fixture(scope="module")
def client(address) -> Client:
    return Client(address, verbose=False)


def test_the_documented_examples_run(address, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    said = {}
    exec(EXAMPLES.replace("http://127.0.0.1:7860", address), said)
    printed = capsys.readouterr().out
    assert f"{said['sliced']['perplexity']['sliced']}" in printed
    assert said["texts"]["sliced"] in printed
    assert said["row"]["sparsity"] == 0.4
    with zipfile.ZipFile(said["archive"]) as archive:
        record = next(name for name in archive.namelist() if name.endswith(RECORD))
        assert json.loads(archive.read(record))["record"]["ratios"] == said["sliced"]["ratios"]
    assert "--lock 2 mlp 25" in printed


SWEEP = ["methods", "estimators", "sparsities", "speed", "quantise"]
ANSWERED = ["prompt", "tokens", "temperature", "sample_seed"]
# By the endpoint: its parameters after those of all settings.
PARAMETERS = {
    **dict.fromkeys(("evaluate", "prepare", "pin", "checkpoint", "publish", "plan", "save_ratios"), ()),
    **dict.fromkeys(("ratios", "measure", "measure_live"), ("layer", "pinned")),
    **dict.fromkeys(("sensitivity", "search"), ("layer",)),
    **dict.fromkeys(("sweep", "sweep_table", "sweep_csv"), SWEEP),
    "answer": [*ANSWERED, "raw", "pinned", "other"],
    "generate": ANSWERED,
    "costs": ["pinned", "other"],
    "next_tokens": ["prompt", "raw"],
    "passage": ["passage"],
    "command_lines": ["prompt"],
    "facts": ["language"],
    "device_files": ["file_type"],
    "fit_size": ["size", "context"],
    "gguf": ["gguf_type"],
    "locked_ratios": ["ratios_file"],
    "report": ["layer", "prompt", *SWEEP],
}


def test_every_endpoint_has_a_name_types_and_words(client) -> None:
    described, parameters = client.view_api(return_format="dict", print_info=False), {}
    assert not described["unnamed_endpoints"]
    for name, endpoint in described["named_endpoints"].items():
        assert re.fullmatch(r"/[a-z]+(_[a-z]+)*", name), f"{name} is no name"
        assert len(endpoint["description"]) > 20, f"{name} says nothing"
        assert all(parameter["python_type"]["type"] for parameter in endpoint["parameters"])
        assert all(parameter["parameter_has_default"] for parameter in endpoint["parameters"]), f"{name} asks for more"
        parameters[name[1:]] = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
    expected = {name: inputs_of(Settings._fields, *others) for name, others in PARAMETERS.items()}
    assert parameters == expected | {"restore": [], "memory": ["model"], "halt": []}


def test_bad_input_beyond_the_fields_bounds_or_what_was_removed_comes_back_in_words(client) -> None:
    for words, endpoint, values in (
        ("'much' is not a locked ratio; expected layer, module and percentage", "command_lines", {"locked": "much"}),
        ("vd was removed; use modegpt", "sweep_table", {"methods": ["svd"]}),
        ("vd was removed; use modegpt", "sweep", {"methods": ["svd"]}),
        ("terative was removed; use order sequential", "evaluate", {"order": "sequential", "iterative": True}),
        ("terative was removed; use order sequential", "command_lines", {"iterative": True}),
    ):
        with pytest.raises(AppError, match=words):
            client.predict(**values, api_name=f"/{endpoint}")
    fields = {one["props"].get("label"): one["props"] for one in client.config["components"]}
    for label, limit in (("Sequences", limits.SEQUENCES), ("Length", limits.LENGTH)):
        assert fields[label]["maximum"] == limit.desktop
        with pytest.raises(AppError, match=f"{label} must be a whole number from .*, got {limit.desktop + 1}"):
            client.predict(**{label.lower(): limit.desktop + 1}, api_name="/evaluate")
    with pytest.raises(AppError, match="terative was removed; use order sequential"):
        client.predict(*Settings(order="sequential", iterative=True), api_name="/evaluate")
    with pytest.raises(AppError, match="rices was removed; use search"):
        client.predict(*Settings(), 0, api_name="/prices")
    assert "/prices" not in client.view_api(return_format="dict", print_info=False)["named_endpoints"]


def test_on_a_desktop_a_file_of_ones_own_may_be_named(client, tmp_path) -> None:
    for values in ({"upload": str(tmp_path / "a.txt")}, {"text": str(tmp_path / "a.txt")}):
        assert "a.txt" in client.predict(**values, api_name="/command_lines")
        with pytest.raises(AppError, match=r"Text .*a.txt' not found"):
            client.predict(**values, api_name="/evaluate")


def test_a_file_of_ratios_goes_round(client) -> None:
    """What the page saves is locked again, and gives the plan that it was."""
    evaluated = client.predict(sparsity=40, api_name="/evaluate")  # calibrates: before, ratios are the snapshot's
    assert evaluated["asked"] == evaluated["requested"]  # the former name
    ratios, saved = evaluated["ratios"], client.predict(sparsity=40, api_name="/save_ratios")
    # Sizes of a tiny model are coarse: what is asked for is what they come to.
    asked = 100 * evaluated["removed_fraction"]
    locked = client.predict(sparsity=asked, ratios_file=handle_file(saved), api_name="/locked_ratios")
    again = client.predict(sparsity=asked, locked=locked, estimator="uniform", api_name="/evaluate")
    assert again["ratios"] == [pytest.approx(both, abs=1e-9) for both in ratios]
    # In per cent, as the page has them, they keep twelve digits.
    resaved = client.predict(sparsity=asked, locked=locked, estimator="uniform", api_name="/save_ratios")
    assert_frame_equal(*map(pandas.read_csv, (resaved, saved)))


def test_a_caller_who_goes_away_ends_its_job(address, session, monkeypatch) -> None:
    """Plain HTTP, without the heartbeat that browsers and gradio's own client keep."""
    steps, ended = [], threading.Event()

    def endless(job: Job, **_: Any) -> None:
        try:
            while True:
                steps.append(time.monotonic())
                job.sleep(0.01)
                job.emit(Status("working"))
        finally:
            ended.set()

    monkeypatch.setattr(files, "evaluation", endless)
    asked = httpx.post(f"{address}gradio_api/call/evaluate", json={"data": list(Settings())})
    with httpx.stream("GET", f"{address}gradio_api/call/evaluate/{asked.json()['event_id']}") as stream:
        assert stream.status_code == 200
        while len(steps) < 10:
            time.sleep(0.01)
    assert ended.wait(30)
    session.jobs.scheduler.start("another", lambda job: None).join()  # and the turn was passed on
    assert not session.jobs.scheduler.jobs


def test_calls_of_one_session_do_not_end_each_other(client) -> None:
    """MCP clients share one."""
    calls = {sparsity: client.submit(sparsity=sparsity, api_name="/evaluate") for sparsity in (21, 22)}
    removed = {sparsity: call.result(timeout=120)["removed_fraction"] for sparsity, call in calls.items()}
    assert removed == pytest.approx({21: 0.21, 22: 0.22}, abs=0.01)
