"""Sessions share one configuration of the page, and nothing that they write into it."""

import gradio as gr
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from components.gradio_compat.blocks import PatchedBlocks


def make_page(kind: type[gr.Blocks] = PatchedBlocks) -> gr.Blocks:
    with kind() as page, gr.Row():
        gr.Slider(0, 10, value=3, label="of all")
        gr.Dropdown(["a", "b"], value="a")
    return page


def built_for_two_sessions(kind: type[gr.Blocks], monkeypatch) -> int:
    """How often the slider's configuration is built."""
    built, original = [], gr.Slider.get_config
    monkeypatch.setattr(gr.Slider, "get_config", lambda self, *rest: built.append(self) or original(self, *rest))
    page = make_page(kind)
    built.clear()
    for _ in range(2):
        assert SessionState(page).config_values
    return len(built)


def test_plain_gradio_builds_the_configuration_anew_for_each_session(monkeypatch) -> None:
    assert built_for_two_sessions(gr.Blocks, monkeypatch) == 2


def test_the_configuration_is_built_once(monkeypatch) -> None:
    assert built_for_two_sessions(PatchedBlocks, monkeypatch) <= 1


def test_a_sessions_configuration_is_gradios_own() -> None:
    made = make_page()
    own = {key: BlocksConfig.config_for_block(key, [], block) for key, block in made.default_config.blocks.items()}
    for _ in range(2):
        found = SessionState(made).config_values
        assert found == {key: own[key] for key in found}
        assert len(found) >= 3


def test_what_a_session_writes_is_its_own() -> None:
    made = make_page()
    first, second = SessionState(made), SessionState(made)
    (slider,) = (key for key, block in made.default_config.blocks.items() if isinstance(block, gr.Slider))
    first._update_value_in_config(slider, 7)
    assert first.config_values[slider]["props"]["value"] == 7
    assert second.config_values[slider]["props"]["value"] == 3
    assert SessionState(made).config_values[slider]["props"]["value"] == 3
