"""The page in two languages: nothing is left unsaid in the second, numbers are written as it has them, and each visitor
is answered in their own, two at once included."""

import ast
import copy
import html.parser
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from string import Formatter
from types import SimpleNamespace

import httpx
import pytest
from calling import inputs_of
from gradio_client import Client
from tiny_page import PageSession

from components import tabs
from components.assets import ASSETS
from components.gradio_compat.blocks import language_of
from components.i18n.language import (
    ENGLISH,
    LANGUAGES,
    LazyString,
    catalogue,
    gettext,
    lazy_gettext,
    number,
    requested_language,
    translate,
    use_language,
)
from components.page import build_app, launch_options
from components.state import choices
from components.state.request import parse
from components.state.session import Session
from components.state.settings import Settings
from components.ui import formatting
from intraslice.core.checks import RETIRED
from intraslice.core.config import CalibrationConfig, SliceConfig
from intraslice.loading import SLICED
from intraslice.modeling.families import REFUSED

ROOT = ASSETS.parent
OTHERS = [code for code in LANGUAGES if code != ENGLISH]
SAID = re.compile(r'\bsay\(\s*"((?:[^"\\]|\\.)*)"')
GERMAN = {"lang": "de"}


# Files of the library whose errors the page translates. Those of other files are English in every language.
TRANSLATED = (
    *("core/cache.py", "core/checks.py", "core/config.py", "evaluation/generation.py", "modeling/families.py"),
    *("modeling/hidden_states.py", "pipeline.py", "planning", "pretrained/hub.py", "pretrained/memory.py"),
    *("pretrained/sources.py", "recovery/distill.py", "size_target.py", "token_windows.py", "untrusted/layer_files.py"),
    "untrusted/text_files.py",
)
TEXTS, ERRORS = ("gettext", "lazy_gettext"), ("Message", "UserError", "NoRoomError", "Refused", "_refusal")
STARTING = ("components/intraslice_commands", "components/state/choices.py")  # their errors come before the page


def constants(node: ast.expr, tree: ast.Module) -> set[str]:
    """The constant texts that an expression may be, also through a name that is bound to constants."""

    def cases(node: ast.expr) -> list[ast.expr]:
        return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]

    names = {each.id for each in cases(node) if isinstance(each, ast.Name)}
    bound = [each for each in ast.walk(tree) if isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) in names]
    found = [each for value in (node, *(one.value for one in bound)) for each in cases(value)]
    return {each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)} - {""}


def python_texts() -> set[str]:
    """Every text that the page's code says, and the errors of the library that it shows."""
    library = [ROOT / "intraslice" / name for name in TRANSLATED]
    library = [file for path in library for file in (path.rglob("*.py") if path.is_dir() else [path])]
    found = set()
    for path in (ROOT / "app.py", *(ROOT / "components").rglob("*.py"), *library):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in filter(lambda node: isinstance(node, ast.Call), ast.walk(tree)):
            name = ast.unparse(node.func)
            if name in TEXTS or (name in ERRORS and not str(path.relative_to(ROOT)).startswith(STARTING)):
                found |= (texts := constants(node.args[0], tree))
                is_constant = bool(texts) if name in TEXTS else not isinstance(node.args[0], ast.JoinedStr)
                assert is_constant or path.name == "language.py", f"{path}:{node.lineno} has no constant text"
            elif name.startswith("checks.") or name in ("integer", "number", "one_of", "require_words"):
                found |= constants(node.args[0], tree) if node.args else set()
    return found


def library_terms() -> set[str]:
    """What the page shows of the library's own names."""
    registries = (choices.ESTIMATORS, choices.METHODS, choices.RECOVERIES)
    labels = {entry.label for registry in registries for entry in registry.values()}
    units = {entry.units for entry in choices.ESTIMATORS.values() if entry.units}
    configs = CalibrationConfig.__dataclass_fields__ | SliceConfig.__dataclass_fields__
    names = {"dtype", "method", *(name for name in Settings._fields if name in configs)}  # in errors
    errors = {*RETIRED.values(), *REFUSED.values(), SLICED, "numbers", "other values"}
    return labels | units | names | errors | {"neurons", "units"}


def script_texts() -> set[str]:
    """Every text that the browser's scripts say, but for the example in a comment."""
    scripts = (path for path in (ASSETS).rglob("*.js") if path.name != "isx.js")
    return {json.loads(f'"{text}"') for path in scripts for text in SAID.findall(path.read_text(encoding="utf-8"))}


def places(text: str) -> Counter:
    """The placeholders of a text, with how each is formatted."""
    return Counter(f"{name}!{how}:{form}" for _, name, form, how in Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("code", OTHERS)
@pytest.mark.parametrize(
    ("file", "said", "terms"), [("words", python_texts, library_terms), ("scripts", script_texts, set)]
)
def test_every_word_is_there_with_its_places_and_none_is_left_over(code, file, said, terms) -> None:
    known, wanted = catalogue(code, file), said() | terms()
    assert sorted(wanted - known.keys()) == []
    assert sorted(known.keys() - wanted) == []
    assert [text for text, words in known.items() if not words.strip() and text.strip()] == []
    assert [text for text, words in known.items() if places(text) != places(words)] == []


class Elements(html.parser.HTMLParser):
    """How often each element stands in a text, with what scripts and styles know it by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: Counter = Counter()
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        known = sorted((name, value) for name, value in attrs if name in ("id", "class", "href", "for", "name", "type"))
        self.found[tag, str(known)] += 1


@pytest.mark.parametrize("code", OTHERS)
def test_long_texts_have_the_same_elements(code) -> None:
    english, other = ASSETS / "texts" / ENGLISH, ASSETS / "texts" / code
    names = {path.name for path in english.iterdir()}
    assert {path.name for path in other.iterdir()} - {"words.json", "scripts.json"} == names
    for name in sorted(name for name in names if name.endswith(".html")):
        texts = [(folder / name).read_text(encoding="utf-8") for folder in (english, other)]
        first, second = (Elements(text).found for text in texts)
        assert first - second == second - first == Counter(), name
        assert Counter(re.findall(r"\$\w+", texts[0])) == Counter(re.findall(r"\$\w+", texts[1])), name


KEPT = ("id", "states", "tab", "target", "veil", "press", "sparsity", "kind", "min", "max", "step", "value", "groups")


def alike(english: object, other: object, name: str = "") -> None:
    """Two JSON values differ in nothing but words, and these have the same gaps."""
    assert type(english) is type(other)
    if isinstance(english, dict):
        assert english.keys() == other.keys()
        for key in english:
            alike(english[key], other[key], key)
    elif isinstance(english, list) and name not in KEPT:
        assert len(english) == len(other)
        for pair in zip(english, other, strict=True):
            alike(*pair, name)
    elif isinstance(english, str) and (name not in KEPT or " " in english):
        assert other.strip()
        assert set(re.findall(r"\{\w+\}", english)) == set(re.findall(r"\{\w+\}", other))
    else:
        assert english == other, name


@pytest.mark.parametrize("code", OTHERS)
@pytest.mark.parametrize("name", ["lesson.json", "tour.json", "keys.json"])
def test_lesson_tour_and_keys_are_the_same_but_for_words_and_the_tour_opens_tabs_that_there_are(code, name) -> None:
    english, other = (json.loads((ASSETS / "texts" / one / name).read_text("utf-8")) for one in (ENGLISH, code))
    alike(english, other)
    assert name != "tour.json" or {step["tab"] for step in english} <= tabs.TABS.keys()


@pytest.mark.parametrize(
    ("value", "form", "german"),
    [
        (0.298, ".1%", "29,8\u00a0%"),
        (1234567, ",", "1.234.567"),
        (-1234.5, "+,.2f", "−1.234,50"),
        (30, "g", "30"),
        (3.2e-5, ".1e", "3,2e-05"),
    ],
)
def test_numbers_are_written_as_the_language_has_them(value, form, german) -> None:
    assert number(value, form) == format(value, form).replace("-1", "−1")
    assert gettext(f"{{value:{form}}}", value=value) == number(value, form)
    with use_language("de"):
        assert number(value, form) == german


@pytest.mark.parametrize(
    ("query", "accepted", "code"),
    [
        ({}, None, "en"),
        ({}, "de-DE,de;q=0.9,en;q=0.8", "de"),
        ({}, "fr;q=0.9, en;q=0.5, de;q=0.7", "de"),
        ({}, "en-GB,de;q=0.9", "en"),
        ({}, "fr", "en"),
        ({}, "de;q=0, *", "en"),
        ({}, "de;q=much", "en"),
        ({"lang": "en"}, "de", "en"),
        ({"lang": "de"}, "en-US", "de"),
        ({"lang": "../de"}, "en", "en"),
    ],
)
def test_the_address_says_the_language_else_the_browser(query, accepted, code) -> None:
    assert requested_language(query, accepted) == code
    request = SimpleNamespace(query_params=query, headers={"accept-language": accepted})
    assert language_of(request) == language_of([request]) == code
    assert language_of(None) == language_of(SimpleNamespace(session_hash="x", query_params={})) == ENGLISH


def test_what_is_said_later_is_said_to_each_reader() -> None:
    said, counts = "This model must be sliced before it can answer. {what} {done} of {total}.", {"done": 1, "total": 2}
    words = lazy_gettext(said, what=lazy_gettext("Slicing, layer"), **counts)
    with use_language("de"):
        assert gettext(said, what=gettext("Slicing, layer"), **counts) == translate(words)
        told = "Dieses Modell muss erst zugeschnitten werden. Zuschneiden, Schicht 1 von 2."
        assert translate(words) == translate(copy.deepcopy(words)) == translate(str(words)) == told
        assert translate(str(ValueError(words))) == told
        assert formatting.problem(ValueError(words)).count(told) == 1
        assert words == "This model must be sliced before it can answer. Slicing, layer 1 of 2."
        assert translate("an error of {the} library") == "an error of {the} library"


@pytest.fixture(scope="module")
def address(launch_once) -> str:
    return launch_once(build_app(PageSession()), **launch_options()).address.rstrip("/")


def config_of(text: str) -> dict:
    return json.loads(re.search(r"window\.gradio_config = (\{.*?\});</script>", text, re.DOTALL)[1])


def labels_of(config: dict) -> set[str]:
    return {one["props"].get("label") for one in config["components"]}


def test_the_page_comes_in_its_visitors_language(address) -> None:
    german, english = (httpx.get(address, params=params).text for params in (GERMAN, {}))
    assert '<html\n\tlang="en"' in english
    assert 'document.documentElement.lang = "de"' in german
    assert german.index("navigator") < german.index("window.gradio_config")
    assert "defineProperty(navigator" not in english  # a French browser's buttons stay French
    assert {"Zahlenformat", "Quoten", "Weitere Einstellungen", "Schätzer der Quoten"} <= labels_of(config_of(german))
    assert {"Precision", "Ratios", "More settings", "Ratio estimator"} <= labels_of(config_of(english))
    assert "Perplexität" in json.dumps(config_of(german), ensure_ascii=False)
    assert not any(isinstance(value, LazyString) for value in config_of(english).values())
    by_header = httpx.get(address, headers={"Accept-Language": "de-AT,en;q=0.5"}).text
    assert "Zahlenformat" in labels_of(config_of(by_header))
    assert httpx.get(f"{address}/config", params=GERMAN).json()["components"]


def test_the_page_is_small_and_browsers_keep_its_script_and_styles(address) -> None:
    page = httpx.get(address, params={"lang": "en"})
    assert len(page.content) <= 900_000
    files = [httpx.get(f"{address}/{html.unescape(file)}") for file in re.findall(r'="(isx\.[^"]+)"', page.text)]
    assert ["immutable" in file.headers["cache-control"] for file in files] == [True, True]
    german = httpx.get(f"{address}/isx.js", params=GERMAN).text
    assert all(text in german for text in ("isx.address = ", 'isx.components["chart"] = ', "Schieberegler"))


def test_a_german_and_an_english_visitor_at_once_get_their_own_words_and_errors(address) -> None:
    clients = {code: Client(address, headers={"Accept-Language": code}, verbose=False) for code in ("de", "en")}

    def asks(turn: int) -> tuple[str, str]:
        code = ("de", "en")[turn % 2]
        settings = Settings(sparsity=10.0 + turn, dtype="float32")
        return code, str(clients[code].predict(*inputs_of(settings, 0, ""), api_name="/ratios"))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(asks, range(16)))
    for code, answer in answers:
        assert ("Welche Schichten werden beschnitten, und wie stark?" in answer) == (code == "de")
        assert ("Pruning ratio per layer" in answer) == (code == "en")
        assert ("der Parameter der Schichten entfernt" in answer) == (code == "de")
    with pytest.raises(Exception, match=r"erwartet wird eine Zahl von 0 bis 60, nicht 99\.0"):
        clients["de"].predict(*inputs_of(Settings(sparsity=99.0, dtype="float32"), 0, ""), api_name="/ratios")


def test_a_session_has_no_language_of_its_own() -> None:
    """What is shared is said in English, whoever asked first: a page's words are told on the reader's side."""
    with use_language("de"):
        measured = Session().perplexities(parse(Settings()))
    assert measured.text == "held-out Wikipedia"
