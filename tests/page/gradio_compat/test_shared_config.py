"""Sessions share one configuration of the page, and nothing that they write into it."""

import gc

import gradio as gr
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState, StateHolder

from components.gradio_compat.blocks import PatchedBlocks


def make_page(kind: type[gr.Blocks] = PatchedBlocks) -> gr.Blocks:
    with kind() as page, gr.Row():
        gr.Slider(0, 10, value=3, label="of all")
        gr.Dropdown(["a", "b"], value="a")
    return page


def sessions_of(page: gr.Blocks, count: int = 2) -> list[SessionState]:
    """As gradio's server makes them."""
    holder = StateHolder()
    page.state_session_capacity = 2 * count
    holder.set_blocks(page)
    return [holder[f"session {number}"] for number in range(count)]


def built_for_two_sessions(kind: type[gr.Blocks], monkeypatch) -> int:
    """How often the slider's configuration is built."""
    built, original = [], gr.Slider.get_config
    monkeypatch.setattr(gr.Slider, "get_config", lambda self, *rest: built.append(self) or original(self, *rest))
    page = make_page(kind)
    built.clear()
    assert all(session.config_values for session in sessions_of(page))
    return len(built)


def test_plain_gradio_builds_the_configuration_anew_for_each_session(monkeypatch) -> None:
    assert built_for_two_sessions(gr.Blocks, monkeypatch) == 2


def test_the_configuration_is_built_once(monkeypatch) -> None:
    assert built_for_two_sessions(PatchedBlocks, monkeypatch) <= 1


def test_a_sessions_configuration_is_gradios_own() -> None:
    made = make_page()
    own = {key: BlocksConfig.config_for_block(key, [], block) for key, block in made.default_config.blocks.items()}
    for session in sessions_of(made):
        found = session.config_values
        assert found == {key: own[key] for key in found}
        assert len(found) >= 3


def test_what_a_session_writes_is_its_own() -> None:
    made = make_page()
    first, second = sessions_of(made)
    (slider,) = (key for key, block in made.default_config.blocks.items() if isinstance(block, gr.Slider))
    first._update_value_in_config(slider, 7)
    first._update_value_in_config(slider, 8)
    assert first.config_values[slider]["props"]["value"] == 8
    assert second.config_values[slider]["props"]["value"] == 3
    assert sessions_of(made)[0].config_values[slider]["props"]["value"] == 3
    del first.config_values[slider]
    first._update_value_in_config(slider, 9)
    assert first.config_values[slider]["props"]["value"] == 9
    assert second.config_values[slider]["props"]["value"] == 3


def objects_of_a_session(kind: type[gr.Blocks]) -> float:
    """What the garbage collector visits for each session more."""
    page = make_page(kind)
    sessions_of(page)
    gc.collect()
    gc.disable()  # or a collection takes older objects away meanwhile
    try:
        before = len(gc.get_objects())
        kept = sessions_of(page, count=50)
        return (len(gc.get_objects()) - before) / len(kept)
    finally:
        gc.enable()


def test_plain_gradio_makes_objects_for_every_component_of_every_session() -> None:
    assert objects_of_a_session(gr.Blocks) > 15


def test_a_session_is_few_objects() -> None:
    assert objects_of_a_session(PatchedBlocks) < 10
