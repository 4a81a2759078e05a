"""The README of a static site: its front matter makes the folder a static Space of the Hugging Face Hub."""

import shutil
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from huggingface_hub import SpaceCardData

from intraslice.pretrained.sources import DEFAULT, DEFAULT_HUB_ID

from ..assets import ASSETS
from ..device import wllama
from .views import Published

THUMBNAIL = "thumbnail.png"
TAGS = ("pruning", "model-compression", "pca")
# A page whose headers isolate it from other sites may use several threads.
HEADERS = {
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "cross-origin",
}

README = Template("""---
$front
---
Made by `$command`. Any static host can serve this folder; locally, `python -m http.server` can. The charts and the
article also open from disk. The models run in the browser with $engine. $licence
""")


class OnHub(NamedTuple):
    """What the Hub's card says about a site beyond the site itself; "" where it is not known."""

    space: str = ""  # USER/NAME
    model: str = ""  # id of the model that the site is about
    licence: str = ""  # of that model's weights, by the Hub's identifier


def card_facts(model: str, space_name: str) -> OnHub:
    """Return what the Hub's card says. `model` is no local path. Only the default weights' licence is known."""
    if model == DEFAULT:
        return OnHub(space_name, DEFAULT_HUB_ID, "apache-2.0")
    return OnHub(space_name, model if model.count("/") == 1 else "")


def write_readme(folder: Path, published: Published, on_hub: OnHub) -> None:
    """Write README.md and the thumbnail of the site in `folder`.

    The front matter has a thumbnail only if the Space's name is known: the Hub documents a thumbnail as a URL.
    """
    shutil.copyfile(ASSETS / THUMBNAIL, folder / THUMBNAIL)
    front = SpaceCardData(**_front_matter(published, on_hub)).to_yaml()
    licence = "" if on_hub.licence else "The licence of the weights is that of the model from which they were made."
    text = README.substitute(front=front, command=published.command, engine=wllama.ABOUT, licence=licence)
    (folder / "README.md").write_text(text.rstrip() + "\n", encoding="utf-8")


def _front_matter(published: Published, on_hub: OnHub) -> dict[str, Any]:
    """Return the keys of https://huggingface.co/docs/hub/spaces-config-reference that a static site needs."""
    address = f"https://huggingface.co/spaces/{on_hub.space}/resolve/main/{THUMBNAIL}"
    return {
        "title": f"How much of {published.name} can be removed?",
        "emoji": "🔪",
        "colorFrom": "indigo",
        "colorTo": "green",
        "sdk": "static",
        "app_file": "index.html",
        "fullWidth": True,
        "header": "mini",
        "short_description": "Slice a language model by PCA, in the browser",
        "thumbnail": address if on_hub.space else None,
        "license": on_hub.licence or None,
        "models": [on_hub.model] if on_hub.model else None,
        "tags": [*TAGS],
        "custom_headers": HEADERS,
    }
