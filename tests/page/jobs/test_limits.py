"""Every bound of the page, and single values from outside that are held against them."""

import os
import time
from pathlib import Path

import pytest

from components import limits
from components.gradio_compat.requests import BYTES_PER_INODE, make_room
from components.i18n.language import translate, use_language
from components.jobs.status import Status
from components.page import launch_options
from components.state.request import parse
from components.state.session import Session
from components.state.settings import Settings, offered_models
from components.ui.downloads import Downloads
from intraslice.core.config import CalibrationConfig, SliceConfig, too_little_removed
from intraslice.core.errors import UserError
from intraslice.pretrained.sources import DEFAULT, SUGGESTED_MODELS

ROOT = Path(__file__).parents[3]


def test_the_documents_have_all_limits() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    rows = [
        f"| {limit.what} | {limit.desktop:,} | {limit.hosted:,} | `{limit.variable}` | {limit.why} |"
        for limit in limits.LIMITS.values()
    ]
    expected = ["| at most | desktop | hosted | variable | reason |", "|---|---|---|---|---|", *rows]
    assert text.split("<!-- limits -->\n")[1].split("\n<!-- /limits -->")[0].splitlines() == expected


def test_a_bound_is_the_hosts_and_the_environment_overrules_it(monkeypatch) -> None:
    for name in ("SPACE_ID", "INTRASLICE_HOSTED", "INTRASLICE_MAX_LENGTH"):
        monkeypatch.delenv(name, raising=False)
    assert limits.LENGTH.value == 4096
    for name, value, limit, bound in (
        ("SPACE_ID", "owner/explorer", limits.LENGTH, 2048),
        ("INTRASLICE_MAX_LENGTH", "1000", limits.LENGTH, 1000),
        ("INTRASLICE_MAX_VISITOR_JOBS", "7", limits.CLIENT_JOBS, 7),  # its former name
        ("INTRASLICE_MAX_CLIENT_JOBS", "8", limits.CLIENT_JOBS, 8),
    ):
        monkeypatch.setenv(name, value)
        assert limit.value == bound
    with pytest.raises(UserError, match="length must be a whole number from 2 to 1,000, got 1024"):
        parse(Settings(length=1024))


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("MAX_JOBS", ("0", "-3", "many", "1e3"), "a whole number above 0"),
        ("FRAME_ANCESTORS", ("a; script-src *", "a, b", "a\nb", "é"), "sites separated by spaces"),
    ],
)
def test_no_page_opens_with_a_bound_that_is_none(name, values, expected, monkeypatch) -> None:
    for value in values:
        monkeypatch.setenv(f"INTRASLICE_{name}", value)
        with pytest.raises(UserError, match=f"INTRASLICE_{name} must be {expected}.*, got "):
            launch_options()


def test_sequences_samples_and_length_are_bounded_together(monkeypatch) -> None:
    with pytest.raises(UserError, match=r"at most 1,048,576 tokens, got 2,097,152 .1,024 sequences of 2,048"):
        parse(Settings(sequences=1024, length=2048))
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    thorough = Settings(sequences=128, samples=16)
    assert parse(thorough).calibration.config == CalibrationConfig.thorough()
    for more in ({"sequences": 129}, {"samples": 17}, {"length": 513}):
        with pytest.raises(UserError, match=r"at most 73,728 tokens, got .* sequences of 51"):
            parse(thorough._replace(**more))


def test_a_hosted_pages_errors_name_no_folder_and_a_desktops_do(monkeypatch) -> None:
    error = "No text '/srv/a b/x.csv' (or /etc/y.csv, ~/z) at https://hub.co/x/y, file:///srv/t; expected owner/a, 3/4."
    assert Status(error, "error").text == error
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    told = "No text 'x.csv' (or y.csv, z) at https://hub.co/x/y, t; expected owner/a, 3/4."
    assert Status(error, "error").text == limits.error_text(ValueError(error)) == told
    assert Status(error).text == error
    assert len(limits.error_text("x" * 10**6)) < 1000
    monkeypatch.setenv(limits.MODELS_VARIABLE, "owner/name /srv/mine ~/mine")  # which the owner has named
    listed = "Must be one of owner/name, /srv/mine, ~/mine, got '/srv/mine'"
    assert limits.error_text(f"{listed} in /srv/mine/config.json, ~/x") == f"{listed} in config.json, x."


def test_the_oldest_uploads_make_room_and_what_the_page_hands_out_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    downloads = Downloads()
    sent = downloads.put("plan.json", lambda path: path.write_bytes(bytes(500)))
    broken_off = tmp_path / "tmp1"  # as an upload is called that did not come to its end
    kept = [tmp_path / name / "text.txt" for name in ("one", "two")]
    for moment, path in enumerate((broken_off, *kept)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(400))
        os.utime(path, (moment, moment))
    stay = (sent, broken_off, *kept)
    for inodes, left in ((5, stay), (4, (sent, *kept)), (0, (sent,))):  # 5: two of the files are in folders
        make_room(tmp_path, inodes * BYTES_PER_INODE)
        assert tuple(path for path in stay if path.exists()) == left


NO_IDS = ("~", "..", "../server0", "tests/page", "/etc", "x" * 150, "a//b", "https://hub.co/a", "", "*")


@pytest.mark.parametrize(
    ("listed", "offered", "others", "refused"),
    [
        ("", [*SUGGESTED_MODELS], (), (*NO_IDS, "owner/name", "gpt2", "default ", "Microsoft/phi-2")),
        (f" owner/name  {ROOT}", [DEFAULT, "owner/name", str(ROOT)], (), (*NO_IDS, "microsoft/phi-2", f"{ROOT}/docs")),
        ("*", [*SUGGESTED_MODELS], ("owner/name", "gpt2"), NO_IDS),
        (f"* {ROOT} gpt2", [DEFAULT, str(ROOT), "gpt2"], ("owner/name", "microsoft/phi-2"), NO_IDS),
    ],
)
def test_a_hosted_page_loads_the_models_of_its_list_and_nothing_else(
    listed, offered, others, refused, monkeypatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    monkeypatch.setenv(limits.MODELS_VARIABLE, listed)
    assert offered_models() == (offered, bool(others))
    for name in (*offered, *others):
        assert parse(Settings(model=name)).calibration.model == name
    start = time.thread_time()
    for name in refused:
        with pytest.raises(UserError, match="must be a Hub id" if others else f"one of {', '.join(offered)}, got"):
            parse(Settings(model=name))
    assert time.thread_time() - start < 0.01 * len(refused)
    monkeypatch.setenv("INTRASLICE_HOSTED", "0")  # a desktop offers the list and loads whatever is named
    assert offered_models() == (offered, True)
    assert parse(Settings(model="/etc")).calibration.model == "/etc"


@pytest.mark.parametrize("value", ["/none/such", "a//b", "owner/name,other/name", "owner/name mine.gguf", "x" * 300])
def test_no_page_opens_with_a_list_of_models_that_is_none(value, monkeypatch) -> None:
    monkeypatch.setenv(limits.MODELS_VARIABLE, value)
    with pytest.raises(UserError, match=r"INTRASLICE_MODELS: .*; separate names by spaces"):
        parse(Settings())


def test_an_error_of_the_library_is_shown_as_a_sentence_in_the_clients_language() -> None:
    for text, sentence in {
        "layer 9 does not exist; layers are 0 to 2": "Layer 9 does not exist; layers are 0 to 2.",
        "mine.csv, row 2: no layer": "mine.csv, row 2: no layer.",  # a file keeps its name
        "Stop it!": "Stop it!",
    }.items():
        assert limits.error_text(UserError(text)) == limits.error_text(sentence) == sentence
    error = too_little_removed(SliceConfig(0.5, bias=1.2, locked=((0, "mlp", 0.3),)), 0.4123)
    with use_language("de"):
        assert translate(Status(str(error), "error").text) == (
            "Sparsity 50\u00a0% ist nicht erreichbar (Obergrenze 80\u00a0%, Bias 1,2 und gesperrte Quoten): Höchstens "
            "41,2\u00a0% der Parameter der Decoderschichten lassen sich entfernen; bitte die Obergrenze heben, den "
            "Bias ändern, Quoten entsperren oder die Sparsity senken."
        )


@pytest.mark.parametrize(("hosted", "times"), [("1", 1), ("0", 0)])
def test_a_hosted_page_verifies_the_default_weights_when_it_starts(hosted, times, monkeypatch) -> None:
    calls = []
    monkeypatch.setenv("INTRASLICE_HOSTED", hosted)
    monkeypatch.setattr("components.state.calibrations.verify_weights", calls.append)
    Session()
    assert len(calls) == times
