"""The public API: `compress` slices a model, and `CompressedModel` evaluates, generates, saves and exports it."""

import html
import logging
import tempfile
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.calibration.user_estimator import load_estimator
from intraslice.checkpoints.format import save
from intraslice.checkpoints.model_card import write_gguf_card
from intraslice.checkpoints.to_gguf import GGUFReport, GGUFType, write_gguf
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressOption
from intraslice.evaluation.generation import Sampling, answer_text, stream_tokens
from intraslice.evaluation.perplexity import Evaluation, evaluate
from intraslice.loading import LoadedModel, fingerprint, prepare_model, require_dense
from intraslice.methods.registry import METHODS, Plan
from intraslice.modeling.counts import parameters_of
from intraslice.pipeline import PASSES, Pipeline
from intraslice.pretrained.precision import AUTO, choose_device, choose_dtype
from intraslice.records import Recipe, evaluation_statistics, layer_table, ratio_chart, slice_record

log = logging.getLogger(__name__)
LOADING_OPTIONS = ("dtype", "device", "device_map")
SLICING_OPTIONS = tuple(field.name for field in fields(SliceConfig) if field.metadata and field.name != "sparsity")
OPTIONS = (*LOADING_OPTIONS, "method", *SLICING_OPTIONS, "ratios", "passes", "size", "context")


def compress(
    model: str | Path | PreTrainedModel | LoadedModel,
    sparsity: float = SliceConfig.sparsity,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    calibration: str | Path | CalibrationConfig = CalibrationConfig.text,
    evaluation: str | Path | EvaluationConfig = EvaluationConfig.text,
    progress: ProgressOption = True,
    **options: Any,
) -> "CompressedModel":
    """Remove a fraction of the decoder layers' parameters: load, calibrate and slice in one call::

        result = intraslice.compress("HuggingFaceTB/SmolLM2-135M-Instruct", sparsity=0.3, order="one-shot")

    With the same options, `python -m intraslice evaluate` prints the numbers that `result.evaluate()` returns.

    Args:
        model: a Hub id, a folder in transformers format, a .gguf file, "default", or a loaded transformers model, which
            is not modified (see `prepare_model`). A result of `load_model` can be shared by several calls.
        sparsity: fraction of the decoder layers' parameters to remove.
        tokenizer: the tokenizer of a loaded transformers model; otherwise it is loaded with the weights.
        calibration: text for the statistics: a name, a file, or a full configuration.
        evaluation: held-out text for `evaluate`: a name, a file, or a full configuration.
        progress: False for no display, or a function of one `Progress`. Any exception it raises ends the call.
        options: `dtype` ("auto", "float32", "bfloat16" or a torch dtype), `device` and `device_map` ("auto" or "disk")
            for loading, which are refused for a model that is loaded already; `method`, a name in `METHODS`; the fields
            of `SliceConfig`, of which `estimator` may also be a file of your own, `path.py:function` or `path.json`, as
            `load_estimator` takes it, or "auto", the default (`choose_estimator`); `ratios="search"`, which looks for
            better ratios than the estimator's in `passes` dense passes over the calibration tokens (`search_ratios`);
            `size="200 MB"`, which replaces the sparsity: at most so many bytes of weights, in the model's dtype or in
            the type that follows, as in "200 MB q8_0" for `to_gguf`, and, with `context=4096`, of the key/value cache
            of so many tokens.

    Raises:
        UserError: there is no such model, it cannot be sliced, the sparsity or the size cannot be reached, or the
            estimator's file cannot be used.
        NumericalError: moments are singular or not finite, or the recovery diverged.
        TypeError: an option is unknown.
    """
    passes = _passes_of(options)
    loaded = _loaded(model, tokenizer, options)
    device = choose_device(options.get("device", AUTO))
    slicing = {name: options[name] for name in SLICING_OPTIONS if name in options}
    estimator = str(options.get("estimator", AUTO))
    slicing["estimator"] = SliceConfig.estimator if estimator == AUTO else load_estimator(estimator).name
    method = METHODS.require(options.get("method", Recipe.method))
    recipe = Recipe(
        model=str(model) if loaded is None else loaded.name,
        slicing=SliceConfig(sparsity, **slicing),
        calibration=calibration if isinstance(calibration, CalibrationConfig) else CalibrationConfig(str(calibration)),
        evaluation=evaluation if isinstance(evaluation, EvaluationConfig) else EvaluationConfig(str(evaluation)),
        method=method.name,
        dtype=choose_dtype(options.get("dtype", AUTO) if loaded is None else loaded.model.dtype, device),
    )
    others: dict[str, Any] = {name: options[name] for name in ("size", "context") if name in options}
    others |= {"ratio_search": passes, "is_auto": estimator == AUTO, "progress": progress}
    pipeline = Pipeline(recipe, device, options.get("device_map"), **others)
    if ignored := [name for name in options if name in method.unused]:
        log.warning("%s ignored: not used by method %s", ", ".join(ignored), method.name)
    return compress_loaded(pipeline, pipeline.load_dense() if loaded is None else loaded)


def compress_loaded(pipeline: Pipeline, loaded: LoadedModel) -> "CompressedModel":
    """Calibrate and slice a dense model by the pipeline's recipe."""
    stats, tokens = pipeline.calibrate_for_method(loaded)
    model, plan = pipeline.slice(loaded, stats, tokens)
    return CompressedModel(model, loaded.tokenizer, plan, loaded, pipeline.recipe)


@dataclass(repr=False)
class CompressedModel:
    """A sliced model with its plan, and its dense model, which stays in memory for comparisons."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    plan: Plan
    dense: LoadedModel
    recipe: Recipe
    _evaluation: Evaluation | None = field(default=None, init=False)

    @property
    def parameters(self) -> dict[str, int]:
        """`dense_total` and `sliced_total`, and for the decoder layers only `dense_decoder` and `sliced_decoder`."""
        return parameters_of(self.dense.model, "dense") | parameters_of(self.model, "sliced")

    @property
    def removed_fraction(self) -> float:
        """The removed fraction of the decoder layers' parameters, counted on the tensors (the actual sparsity)."""
        counts = self.parameters
        return 1 - counts["sliced_decoder"] / counts["dense_decoder"]

    @property
    def record(self) -> dict[str, Any]:
        """The record of how the model was made, as saved in its folder; with perplexities after `evaluate`."""
        record, measured = slice_record(self.recipe, self.dense, self.plan), self._evaluation
        return record | (evaluation_statistics(measured.dense, measured.sliced) if measured else {})

    @property
    def loaded(self) -> LoadedModel:
        """The sliced model as `load_model` would return it after saving."""
        return replace(self.dense, model=self.model, record=self.record, fingerprint=fingerprint(self.model))

    def evaluate(
        self, tokens: Int[Tensor, "windows window"] | None = None, *, progress: ProgressOption = True
    ) -> Evaluation:
        """Perplexities and KL divergence from the dense model, on held-out windows, by default of the recipe's text."""
        windows = self.recipe.windows(self.tokenizer) if tokens is None else tokens
        evaluation = evaluate(self.dense.model, self.model, windows, progress=progress)
        if tokens is None:
            self._evaluation = evaluation
        return evaluation

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = Sampling.max_new_tokens,
        temperature: float = 0.0,
        seed: int = 0,
        chat: bool = True,
    ) -> str:
        """Generate an answer with the sliced model; greedy at temperature 0.

        `chat` applies the chat template if the tokenizer has one. `stream_tokens` yields the answer token by token.
        Raises UserError for a prompt that is empty or too long.
        """
        sampling = Sampling(max_new_tokens, temperature, seed, chat)
        return answer_text(self.tokenizer, [*stream_tokens(self.model, self.tokenizer, prompt, sampling)])

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a folder that `load_model`, and `AutoModelForCausalLM` after `import intraslice`, can load.

        The folder is created atomically. Raises UserError if it exists and is not empty, or if the disk is full.
        """
        save(self.model, self.tokenizer, save_directory, self.record)

    def to_gguf(self, file: str | Path, gguf_type: GGUFType = "f16", *, progress: ProgressOption = True) -> GGUFReport:
        """Write a GGUF file for llama.cpp, and a model card next to it. Raises UserError as `write_gguf` does."""
        return export_gguf(self.loaded, file, gguf_type, progress=progress)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a sliced model",
    ) -> str:
        """Upload the folder of `save_pretrained` to a model repository, created if needed. Returns its URL."""
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, repo_id.rpartition("/")[2])
            self.save_pretrained(folder)
            url = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=commit_message)
        return str(url)

    def __repr__(self) -> str:
        facts = (f"{name:<22}{value}" for name, value in self._facts().items())
        return "\n".join([*facts, "", layer_table(self.plan)]).rstrip()

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in self._facts().items())
        return f"<table>{''.join(rows)}</table>{ratio_chart(self.plan)}"

    def _facts(self) -> dict[str, str]:
        counts, config = self.parameters, self.recipe.slicing
        order = f" ({config.order})" if METHODS[self.recipe.method].uses_order else ""
        return {
            "model": f"{self.recipe.model}, sliced by {self.recipe.method}{order}",
            "target sparsity": f"{config.sparsity:.1%} of the decoder layers' parameters",
            "actual sparsity": f"{self.removed_fraction:.1%}",
            "parameters": f"{counts['dense_total']:,} -> {counts['sliced_total']:,}",
            "of decoder layers": f"{counts['dense_decoder']:,} -> {counts['sliced_decoder']:,}",
        }


def export_gguf(
    loaded: LoadedModel, file: str | Path, gguf_type: GGUFType = "f16", *, progress: ProgressOption = True
) -> GGUFReport:
    """Write a model, sliced or dense, as a GGUF file, and a model card next to it unless there is one by others."""
    file = Path(file).expanduser()
    report = write_gguf(loaded.model, loaded.tokenizer, file, gguf_type, loaded.name, loaded.record, progress=progress)
    record = loaded.record or {"source": loaded.source, "requested": {"model": loaded.name}}
    write_gguf_card(loaded.model, record, file)
    return report


def _passes_of(options: dict[str, Any]) -> float | None:
    """The budget of a search, if there is one. Raises TypeError for an unknown option, UserError for a value."""
    if unknown := options.keys() - {*OPTIONS}:
        raise TypeError(
            f"compress has no option {min(unknown)!r}; options are {', '.join(OPTIONS)}. Token counts "
            "and the seed are set by calibration=CalibrationConfig(...) and evaluation=EvaluationConfig(...)"
        )
    if options.get("context") and options.get("size") is None:
        raise UserError("context counts towards a size; pass size= too, or leave context out")
    ratios = options.get("ratios", "estimator")
    if ratios not in ("estimator", "search"):
        raise UserError(f"ratios must be 'estimator' or 'search', got {ratios!r}")
    if ratios == "search":
        if (passes := options.get("passes", PASSES)) is None:
            raise UserError("passes must be a number of dense passes, got None")
        return passes
    if "passes" in options:
        raise UserError("passes is the budget of a search; pass ratios='search' too, or leave passes out")
    return None


def _loaded(
    model: str | Path | PreTrainedModel | LoadedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    options: dict[str, Any],
) -> LoadedModel | None:
    """The prepared model if `model` is in memory already, else None."""
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise UserError("tokenizer= is for a loaded model, but model is a name or path; leave tokenizer= out")
        return None
    if loading_options := sorted(options.keys() & set(LOADING_OPTIONS)):
        raise UserError(
            f"{loading_options[0]} controls loading, and the model is loaded already; leave it out, or pass the "
            "model's id"
        )
    if isinstance(model, LoadedModel):
        require_dense(model)
        return model
    if tokenizer is None:
        raise UserError("a loaded transformers model needs its tokenizer; pass tokenizer=, or the model's id")
    return prepare_model(model, tokenizer)
