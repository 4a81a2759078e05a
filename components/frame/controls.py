"""The controls: the component of each setting, the sidebar, and the sparsity slider."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..i18n.language import LazyString, lazy_gettext, translate
from ..state.choices import AUTO, BUDGETS, NO_RECOVERY, PRECISIONS, RECOVERIES, label_of_recovery
from ..state.session import Session
from ..state.settings import CONTROLS, Settings, offered_models
from ..ui import screen
from ..ui.labels import ESTIMATORS

LAST_LAYER = 29  # of the default model
_quick, _thorough = (budget() for budget in BUDGETS.values())
BUDGET_INFO = lazy_gettext(
    "How much the calibration reads. Quick: {quick} x {length} tokens of the text. Thorough: {thorough} x {length}, "
    "and {samples} x {length} that the dense model samples: a better slice, on other kinds of text, too.",
    quick=_quick.sequences,
    thorough=_thorough.sequences,
    samples=_thorough.samples,
    length=_thorough.length,
)
AT_FIRST = ("model", "sparsity", "estimator", "recovery")  # in view; the other settings are in *More settings*
OF_SLICE = [name for name, control in CONTROLS.items() if not control.calibrates]  # the others are of the calibration


def _model(**options: Any) -> gr.Dropdown:
    models, is_open = offered_models()
    return gr.Dropdown(
        models,
        allow_custom_value=is_open,
        label=lazy_gettext("Model"),
        info=lazy_gettext(
            "One of these, the Hub id of another Llama, Mistral, Qwen, Gemma 3, SmolLM3 or Phi model, or a folder"
        )
        if not limits.hosted()
        else lazy_gettext("One of these, or the Hub id of another Llama, Mistral, Qwen, Gemma 3, SmolLM3 or Phi model")
        if is_open
        else lazy_gettext("One of these. For another, such as your own on the Hub, run the page on your own computer"),
        show_label=False,
        **options,
    )


_number = partial(gr.Number, precision=0, min_width=70)
_slider = partial(gr.Slider, step=1, buttons=[])
# By the fields of `Settings`; those in *More settings* are shown there in this order.
COMPONENTS: dict[str, Callable[..., gr.components.Component]] = {
    "model": _model,
    "sparsity": partial(_slider, label=lazy_gettext("Sparsity: % of the layer parameters to remove")),
    "estimator": lambda **options: gr.Radio(
        [*ESTIMATORS.options(), (LazyString(partial(ESTIMATORS.__getitem__, AUTO)), AUTO)],
        label=lazy_gettext("Ratio estimator"),
        info=lazy_gettext(
            "Predicts which parts matter, and so how much each layer loses. By measurement: the one whose slice at 30% "
            "is nearest to the dense model, which takes about as long as the calibration."
        ),
        **options,
    ),
    "recovery": lambda **options: gr.Radio(
        [(LazyString(partial(label_of_recovery, name)), name) for name in (NO_RECOVERY, *RECOVERIES)],
        label=lazy_gettext("Recovery"),
        info=lazy_gettext("Trains the slice for minutes to match the dense model's predictions."),
        **options,
    ),
    "dtype": partial(gr.Radio, list(PRECISIONS), label=lazy_gettext("Precision")),
    "text": partial(gr.Dropdown, label=lazy_gettext("Calibration text")),
    "upload": partial(
        gr.File,
        label=lazy_gettext("or your own (.txt .jsonl .csv .parquet)"),
        file_types=[".txt", ".jsonl", ".csv", ".parquet"],
        height=64,
    ),
    "sequences": lambda **options: _number(
        label=lazy_gettext("Sequences"), minimum=1, maximum=limits.SEQUENCES.value, **options
    ),
    "length": lambda **options: _number(
        label=lazy_gettext("Length"), minimum=2, maximum=limits.LENGTH.value, **options
    ),
    "seed": partial(_number, label=lazy_gettext("Seed"), minimum=0, maximum=checks.MAX_INTEGER),
    "samples": partial(_number, label=lazy_gettext("Samples"), visible=False),  # set by `Controls.budget`
    "iterative": partial(gr.Checkbox, visible=False),
    "bias": lambda **options: gr.Number(
        label=lazy_gettext("Bias: above 1 prunes MLPs more; empty: set by the importances"),
        visible=False,
        **options | {"elem_id": None},  # that of its slider
    ),
    "cap": partial(
        _slider,
        label=lazy_gettext("Cap: maximum % removed per module"),
        info=lazy_gettext("What a capped module may not lose, the others lose instead."),
    ),
    "shapes": partial(
        gr.Radio,
        [(lazy_gettext("Free"), "free"), (lazy_gettext("Runtime"), "runtime")],
        label=lazy_gettext("Shapes"),
        info=lazy_gettext(
            "Which sizes a sliced layer may have. Free: any. Runtime: shapes that llama.cpp runs without padding "
            "(heads of full width, the same number of query heads for every key/value head of a layer, and MLP widths "
            "in multiples of 32). Raises perplexity by about 2% (default model, 30% removed)."
        ),
    ),
    "order": partial(
        gr.Radio,
        [(lazy_gettext("One-shot, live"), "one-shot"), (lazy_gettext("Sequential"), "sequential")],
        label=lazy_gettext("Order"),
        info=lazy_gettext(
            "One-shot fits every layer to the dense model, at once. Sequential, as in the paper, fits each layer to "
            "those sliced before it, which takes minutes."
        ),
    ),
    "locked": partial(gr.Textbox, label=lazy_gettext("Ratios set manually"), interactive=False, max_lines=3),
}


class Controls:
    """The sidebar's components, which the constructor creates inside `gr.Sidebar()`, and the sparsity slider.

    `settings` has the component of each setting, in the order of `Settings`. `initial` returns readout and bias.
    """

    def __init__(self, session: Session, first: Settings, sparsity: gr.Slider, initial: Callable[[str], Any]) -> None:
        found_bias = initial("bias_found") or 1
        settings: dict[str, Any] = {"sparsity": sparsity}

        def add(*names: str, **options: Any) -> None:
            settings.update({name: component(name, first, **options) for name in names})

        _heading(lazy_gettext("Model"))
        add("model")
        self.memory = gr.HTML(elem_id="memory", apply_default_css=False)
        self.calibrate = gr.Button(lazy_gettext("Load and calibrate"), size="md", elem_id="calibrate")
        _heading(lazy_gettext("Slicing"))
        add("estimator", "recovery")
        with gr.Row(equal_height=True):
            self.paper = gr.Button(lazy_gettext("Slice sequentially"), size="md", elem_id="paper", min_width=190)
            # A style sheet shows it where a recovery is chosen.
            self.train = gr.Button(lazy_gettext("Slice and train"), size="md", elem_id="train", min_width=120)
            self.cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="cancel", min_width=70)
        with gr.Accordion(lazy_gettext("More settings"), open=False, elem_id="more") as self.more:
            add("dtype")
            info = lazy_gettext(
                "Sets the smallest sparsity whose weights fit, in this page's precision or the type that follows, such "
                "as q8_0 of a GGUF file."
            )
            options: dict[str, Any] = {"info": info, "placeholder": "200 MB q8_0", "submit_btn": lazy_gettext("Fit")}
            self.size = gr.Textbox(label=lazy_gettext("Size as the target"), elem_id="size", **options)
            label = lazy_gettext("with the KV cache of … tokens")
            self.context = _number(0, label=label, minimum=0, maximum=checks.MAX_INTEGER, elem_id="context")
            add("text", choices=list(session.texts))
            add("upload")
            label, names = lazy_gettext("Calibration budget"), (lazy_gettext("Quick"), lazy_gettext("Thorough"))
            self.budget = gr.Radio([*zip(names, BUDGETS, strict=True)], label=label, info=BUDGET_INFO, elem_id="budget")
            with gr.Row():
                add("sequences", "length", "seed")
            self.bias_found = gr.Number(found_bias, label=lazy_gettext("Bias set by the importances"), visible=False)
            label = lazy_gettext("Bias: left prunes attention more, right MLPs more")
            self.bias_slider = _slider(0.4, 1.6, value=found_bias, step=0.05, label=label, elem_id="bias")
            label = lazy_gettext("Automatic bias")
            self.bias_auto = gr.Checkbox(True, label=label, elem_id="bias-auto", container=False)
            add(*(name for name in COMPONENTS if name not in settings))
        _heading(lazy_gettext("Results"))
        self.readout = screen.newest(initial("readout"), "readout")
        label = lazy_gettext("Layer shown in detail")
        self.layer = _slider(0, LAST_LAYER, value=0, precision=0, label=label, elem_id="layer")
        self.pinned = gr.Textbox("", label=lazy_gettext("Pinned setting"), visible=False)
        self.settings = {name: settings[name] for name in Settings._fields}

    @property
    def moves(self) -> list[Any]:
        """Events that show another setting of the slice, such as a slider's while it is dragged."""
        return [getattr(self.settings[name], _events(self.settings[name])[0]) for name in OF_SLICE]

    def commits(self, *without: str) -> list[Any]:
        """Events that commit a setting of the slice, such as the release of a slider."""
        components = self.settings | {"bias": self.bias_slider}
        return [getattr(components[name], _events(components[name])[1]) for name in OF_SLICE if name not in without]


def _events(component: gr.components.Component) -> tuple[str, str]:
    """The events by which a component shows a value, and commits it."""
    if isinstance(component, gr.Slider):
        return "input", "release"
    is_set_by_others = isinstance(component, (gr.Number, gr.Textbox))
    return ("change", "change") if is_set_by_others else ("input", "input")


def component(name: str, first: Settings, **options: Any) -> Any:
    """The component of a setting, with its initial value."""
    if bounds := CONTROLS[name].slider:
        options |= {"minimum": bounds[0], "maximum": bounds[1]}
    return COMPONENTS[name](value=getattr(first, name), elem_id=name, **options)


def _heading(text: LazyString) -> None:
    gr.HTML(LazyString(lambda: f"<h2>{translate(text)}</h2>"), apply_default_css=False)
