"""The controls: the sidebar with model, calibration, slicing and readout, and the sparsity slider."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..i18n.language import LazyString, lazy_gettext, translate
from ..state.choices import NO_RECOVERY, PRECISIONS
from ..state.request import offered_models
from ..state.session import Session
from ..state.settings import Settings
from ..ui import screen
from ..ui.labels import ESTIMATORS, RECOVERIES
from .slider import Moved

UPLOADS = [".txt", ".jsonl", ".csv", ".parquet"]
SLIDERS = {"sparsity": (0, 60), "cap": (60, 100)}
LAST_LAYER = 29  # of the default model


class Controls(NamedTuple):
    """The sidebar's components, and the sparsity slider."""

    model: gr.Dropdown
    memory: gr.HTML
    dtype: gr.Radio
    text: gr.Dropdown
    upload: gr.File
    sequences: gr.Number
    length: gr.Number
    seed: gr.Number
    calibrate: gr.Button
    sparsity: gr.Slider
    estimator: gr.Radio
    bias: gr.Number
    bias_found: gr.Number
    bias_slider: gr.Slider
    bias_auto: gr.Checkbox
    cap: gr.Slider
    shapes: gr.Radio
    order: gr.Radio
    iterative: gr.Checkbox
    recovery: gr.Radio
    locked: gr.Textbox
    paper: gr.Button
    train: gr.Button
    cancel: gr.Button
    layer: gr.Slider
    readout: gr.HTML
    pinned: gr.Textbox

    @property
    def settings(self) -> list[gr.components.Component]:
        """The components of the fields of `Settings`, in that order: inputs of all handlers that take a request."""
        return [getattr(self, name) for name in Settings._fields]


def _heading(text: LazyString) -> None:
    gr.HTML(LazyString(lambda: f"<h2>{translate(text)}</h2>"), apply_default_css=False)


def sparsity_slider(value: float) -> gr.Slider:
    """The sparsity slider, which stays at the top of the window."""
    return gr.Slider(
        *SLIDERS["sparsity"],
        value=value,
        step=1,
        label=lazy_gettext("Sparsity: % of the layer parameters to remove"),
        elem_id="sparsity",
        buttons=[],
    )


def build(session: Session, first: Settings, sparsity: gr.Slider, initial: Moved) -> Controls:
    """Fill the sidebar, with the initial readout and bias. Called inside `gr.Sidebar()`."""
    found_bias = initial.bias_found or 1
    _heading(lazy_gettext("Model"))
    models, is_open = offered_models()
    model = gr.Dropdown(
        models,
        value=first.model,
        allow_custom_value=is_open,
        label=lazy_gettext("Model"),
        info=lazy_gettext(
            "One of these, the Hub id of another Llama, Mistral, Qwen, Gemma 3, SmolLM3 or Phi model, or a folder"
        )
        if not limits.hosted()
        else lazy_gettext("One of these, or the Hub id of another Llama, Mistral, Qwen, Gemma 3, SmolLM3 or Phi model")
        if is_open
        else lazy_gettext("One of these. For another, such as your own on the Hub, run the page on your own computer"),
        elem_id="model",
        show_label=False,
    )
    memory = gr.HTML(elem_id="memory", apply_default_css=False)
    dtype = gr.Radio(list(PRECISIONS), value=first.dtype, label=lazy_gettext("Precision"), elem_id="dtype")
    with gr.Accordion(lazy_gettext("Calibration"), open=False, elem_id="calibration"):
        text = gr.Dropdown(list(session.texts), value=first.text, label=lazy_gettext("Text"), elem_id="text")
        upload = gr.File(label=lazy_gettext("or your own (.txt .jsonl .csv .parquet)"), file_types=UPLOADS, height=64)
        with gr.Row():
            number = partial(gr.Number, precision=0, min_width=70)
            sequences = number(
                first.sequences, label=lazy_gettext("Sequences"), minimum=1, maximum=limits.SEQUENCES.value
            )
            length = number(first.length, label=lazy_gettext("Length"), minimum=2, maximum=limits.LENGTH.value)
            seed = number(first.seed, label=lazy_gettext("Seed"), minimum=0, maximum=checks.MAX_INTEGER)
    calibrate = gr.Button(lazy_gettext("Load and calibrate"), size="md", elem_id="calibrate")
    _heading(lazy_gettext("Slicing"))
    estimator = gr.Radio(
        ESTIMATORS.options(),
        value=first.estimator,
        label=lazy_gettext("Ratio estimator"),
        elem_id="estimator",
    )
    bias = gr.Number(
        first.bias, label=lazy_gettext("Bias: above 1 prunes MLPs more; empty: set by the importances"), visible=False
    )
    bias_found = gr.Number(found_bias, label=lazy_gettext("Bias set by the importances"), visible=False)
    bias_slider = gr.Slider(
        0.4,
        1.6,
        value=found_bias,
        step=0.05,
        label=lazy_gettext("Bias: left prunes attention more, right MLPs more"),
        elem_id="bias",
        buttons=[],
    )
    bias_auto = gr.Checkbox(True, label=lazy_gettext("Automatic bias"), elem_id="bias-auto", container=False)
    cap = gr.Slider(
        *SLIDERS["cap"],
        value=first.cap,
        step=1,
        label=lazy_gettext("Cap: maximum % removed per module"),
        elem_id="cap",
        buttons=[],
    )
    shapes = gr.Radio(
        [(lazy_gettext("Free"), "free"), (lazy_gettext("Runtime"), "runtime")],
        value=first.shapes,
        label=lazy_gettext("Shapes"),
        info=lazy_gettext(
            "Runtime: shapes that llama.cpp runs without padding (heads of full width, the same number of query heads "
            "for every key/value head of a layer, and MLP widths in multiples of 32). Raises perplexity by about 2% "
            "(default model, 30% removed)."
        ),
        elem_id="shapes",
    )
    order = gr.Radio(
        [(lazy_gettext("One-shot, live"), "one-shot"), (lazy_gettext("Sequential"), "sequential")],
        value=first.order,
        label=lazy_gettext("Order"),
        info=lazy_gettext("Sequential: as in the paper"),
        elem_id="order",
    )
    iterative = gr.Checkbox(
        first.iterative,
        label=lazy_gettext(
            "Train the kept neurons of MLPs pruned by more than 35% to match the dense MLP (sequential only, slow)"
        ),
        elem_id="iterative",
        container=False,
    )
    recovery = gr.Radio(
        [(lazy_gettext("None"), NO_RECOVERY), *RECOVERIES.options()],
        value=first.recovery,
        label=lazy_gettext("Recovery"),
        info=lazy_gettext(
            "Distillation trains the sliced model to match the dense one's predictions, on the calibration text and "
            "on text that the dense model writes. It costs about as much as 12 dense forward passes over the "
            "calibration text, plus 11 the first time. Distillation with cross-entropy uses the calibration text "
            "alone, adds the cross-entropy on that text's next tokens, and costs about 7 such passes, plus 5 the "
            "first time. Either takes minutes."
        ),
        elem_id="recovery",
    )
    locked = gr.Textbox(first.locked, label=lazy_gettext("Ratios set manually"), visible=False)
    with gr.Row(equal_height=True):
        paper = gr.Button(lazy_gettext("Slice sequentially"), size="md", elem_id="paper", min_width=190)
        train = gr.Button(lazy_gettext("Slice and train"), size="md", elem_id="train", min_width=120, visible=False)
        cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="cancel", min_width=70)
    _heading(lazy_gettext("Results"))
    readout = screen.newest(initial.readout, "readout")
    layer = gr.Slider(
        0,
        LAST_LAYER,
        value=0,
        step=1,
        precision=0,
        label=lazy_gettext("Layer shown in detail"),
        elem_id="layer",
        buttons=[],
    )
    pinned = gr.Textbox("", label=lazy_gettext("Pinned setting"), visible=False)
    return Controls(
        model=model,
        memory=memory,
        dtype=dtype,
        text=text,
        upload=upload,
        sequences=sequences,
        length=length,
        seed=seed,
        calibrate=calibrate,
        sparsity=sparsity,
        estimator=estimator,
        bias=bias,
        bias_found=bias_found,
        bias_slider=bias_slider,
        bias_auto=bias_auto,
        cap=cap,
        shapes=shapes,
        order=order,
        iterative=iterative,
        recovery=recovery,
        locked=locked,
        paper=paper,
        train=train,
        cancel=cancel,
        layer=layer,
        readout=readout,
        pinned=pinned,
    )
