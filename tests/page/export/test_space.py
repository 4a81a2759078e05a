"""The README of a published site has the front matter that the Hub documents for a static Space."""

from types import SimpleNamespace

import pytest
from huggingface_hub import SpaceCard
from space_cards import COLOURS, HEADERS, KEYS

from components.export.space import OnHub, card_facts, write_readme
from intraslice.__main__ import main
from intraslice.pretrained.sources import DEFAULT, DEFAULT_HUB_ID

PUBLISHED = SimpleNamespace(name='a "model": #1', command="python -m intraslice publish --space site")


def card_of(folder, on_hub: OnHub) -> dict:
    write_readme(folder, PUBLISHED, on_hub)
    return SpaceCard.load(folder / "README.md").data.to_dict()


def test_front_matter_of_the_default_model_has_documented_keys_and_values(tmp_path) -> None:
    card = card_of(tmp_path, card_facts(DEFAULT, "somebody/a-site"))
    assert set(card) <= KEYS
    assert (card["sdk"], card["app_file"], card["license"]) == ("static", "index.html", "apache-2.0")
    assert card["title"] == 'How much of a "model": #1 can be removed?'
    assert {card["colorFrom"], card["colorTo"]} <= COLOURS
    assert card["header"] in {"mini", "default"}
    assert len(card["short_description"]) <= 60
    assert card["models"] == [DEFAULT_HUB_ID]
    assert "pruning" in card["tags"]
    assert set(card["custom_headers"]) <= HEADERS
    assert all(value == value.lower() for value in card["custom_headers"].values())


def test_thumbnail_is_the_address_of_the_file_in_the_space_or_missing_without_a_name(tmp_path) -> None:
    address = "https://huggingface.co/spaces/somebody/a-site/resolve/main/"
    place, _, file = card_of(tmp_path, card_facts(DEFAULT, "somebody/a-site"))["thumbnail"].rpartition("/")
    assert f"{place}/" == address
    assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    assert "thumbnail" not in card_of(tmp_path, card_facts(DEFAULT, ""))


@pytest.mark.parametrize(("model", "models"), [("owner/model", ["owner/model"]), ("folder", None)])
def test_card_of_another_model_claims_no_licence_and_lists_ids_only(tmp_path, model, models) -> None:
    card = card_of(tmp_path, card_facts(model, ""))
    assert "license" not in card
    assert card.get("models") == models
    assert "licence of the weights" in (tmp_path / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options", [["--space", "out", "--space-name", "no-user"], ["--site", "out", "--space-name", "a/b"]]
)
def test_space_name_that_is_wrong_or_without_a_space_is_refused_before_any_work(tmp_path, capsys, options) -> None:
    options[1] = str(tmp_path / "out")
    assert main(["publish", *options]) == 2
    assert "--space-name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
