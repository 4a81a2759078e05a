"""Sessions share one configuration of the page, and nothing that they write into it."""

import gradio as gr
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from components.jobs.scheduler import Scheduler
from components.server.app import App


def page() -> App:
    with App(Scheduler()) as made, gr.Row():
        gr.Slider(0, 10, value=3, label="of all")
        gr.Dropdown(["a", "b"], value="a")
    return made


def test_a_sessions_configuration_is_gradios_own() -> None:
    made = page()
    own = {key: BlocksConfig.config_for_block(key, [], block) for key, block in made.default_config.blocks.items()}
    for _ in range(2):
        found = SessionState(made).config_values
        assert found == {key: own[key] for key in found}
        assert len(found) >= 3


def test_what_a_session_writes_is_its_own() -> None:
    made = page()
    first, second = SessionState(made), SessionState(made)
    (slider,) = (key for key, block in made.default_config.blocks.items() if isinstance(block, gr.Slider))
    first._update_value_in_config(slider, 7)
    assert first.config_values[slider]["props"]["value"] == 7
    assert second.config_values[slider]["props"]["value"] == 3
    assert SessionState(made).config_values[slider]["props"]["value"] == 3
