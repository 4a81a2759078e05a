"""The page's configuration in the language of each request."""

import json

import gradio as gr
import pytest
from starlette.middleware import Middleware

from components.gradio_compat.blocks import PatchedBlocks
from components.i18n.language import lazy_gettext
from components.server.language import LanguageMiddleware

ENGLISH, GERMAN = "Cancel", "Abbrechen"


@pytest.mark.parametrize(("kind", "german"), [(gr.Blocks, ENGLISH), (PatchedBlocks, GERMAN)])
def test_plain_gradio_sends_one_configuration_to_all_and_ours_one_for_each_language(launch, kind, german) -> None:
    with kind() as page:
        gr.Textbox(label=lazy_gettext(ENGLISH))
    client = launch(page, app_kwargs={"middleware": [Middleware(LanguageMiddleware)]})
    for language, label in (("en", ENGLISH), ("de", german), ("en", ENGLISH)):
        (component,) = (one for one in client.config(language)["components"] if one["type"] == "textbox")
        assert component["props"]["label"] == label


def test_plain_gradio_leaves_translating_to_the_browser(launch) -> None:
    i18n = gr.I18n(en={"cancel": ENGLISH}, de={"cancel": GERMAN})
    with gr.Blocks() as page:
        gr.Textbox(label=i18n("cancel"))
    components = json.dumps(launch(page, i18n=i18n).config("de")["components"])
    assert ENGLISH not in components
    assert GERMAN not in components
