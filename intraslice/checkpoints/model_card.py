"""The model card (README.md) of a saved or exported model: its base model, how it was sliced, and how to run it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedModel

from intraslice.checkpoints.auto_class import IntraSliceConfig
from intraslice.pretrained.sources import DEFAULT, DEFAULT_HUB_ID, SUGGESTED_MODELS

CARD = "README.md"
Form = Literal["folder", "gguf"]
# The paper of each method, and the options that it uses.
METHODS = {
    "intraslice": ("2602.01975", ("order", "estimator")),
    "intraslice+": ("2602.01975", ("estimator", "epochs")),
    "paper": ("2602.01975", ("estimator", "bias")),
    "paper-direct": ("2602.01975", ("estimator", "bias")),
    "crossmodule": ("2401.15024", ("order",)),
}
# Licences whose identifier on the Hub is not the lower-case form of ours.
_LICENCES = {"Llama 3.2 Community License, access on request": "llama3.2"}
_HUB_SOURCE = re.compile(r"(\S+) from the Hugging Face Hub, commit (\w+)(?:, (.+))?$")  # written by sources.py
_NAMED_TEXTS = {"default": "Wikipedia"}


@dataclass(frozen=True)
class Origin:
    """The dense model, as far as the record describes it."""

    name: str
    hub_id: str | None
    commit: str | None
    licence: str | None

    @classmethod
    def of(cls, record: dict[str, Any]) -> Self:
        """Read from the record. A folder or a file has no id on the Hub, and no known licence."""
        model = record.get("requested", {}).get("model", "")
        match = _HUB_SOURCE.match(record.get("source", ""))
        hub_id, commit, licence = match.groups() if match else (None, None, SUGGESTED_MODELS.get(model))
        if model == DEFAULT:
            hub_id = DEFAULT_HUB_ID
        return cls(hub_id or Path(model).name or "a dense model", hub_id, commit, licence)


def model_card(config: IntraSliceConfig, name: str, form: Form = "folder") -> str:
    """The card, in Markdown, of the folder or GGUF file called `name`.

    Values that are not in the record `config.record`, such as perplexities before an evaluation, are shown as unknown.
    The record of a dense model has `source`, and `requested` with its `model`.
    """
    record, origin = config.record or {}, Origin.of(config.record or {})
    sections = [f"# {name}", _summary(record, origin), _facts(record, origin), _perplexity(record, name, form)]
    sections += ["## How to run it", *_usage(config, name, form), "## Limits", _limits(record, origin)]
    front_matter = _front_matter(origin, form).to_yaml()
    return ModelCard(f"---\n{front_matter}\n---\n\n" + "\n\n".join(sections) + "\n").content


def _front_matter(origin: Origin, form: Form) -> ModelCardData:
    # The Hub's relations are adapter, finetune, merge and quantized. There is none for pruning, which here also changes
    # the values of the remaining weights. The Hub treats every GGUF file as quantised.
    relation = "quantized" if form == "gguf" else "finetune"
    return ModelCardData(
        base_model=origin.hub_id,
        license=origin.licence and _LICENCES.get(origin.licence, origin.licence.lower()),
        library_name="transformers" if form == "folder" else form,
        pipeline_tag="text-generation",
        tags=["intraslice", "pruning"],
        base_model_relation=relation if origin.hub_id else None,
    )


def _summary(record: dict[str, Any], origin: Origin) -> str:
    base = f"[{origin.hub_id}](https://huggingface.co/{origin.hub_id})" if origin.hub_id else f"`{origin.name}`"
    if "removed_fraction" not in record:
        return f"{base}, written by IntraSlice."
    removed = f"{100 * record['removed_fraction']:.1f} % of its decoder layers' parameters"
    return f"{base} with {removed} removed: smaller tensors, nothing is masked."


def _facts(record: dict[str, Any], origin: Origin) -> str:
    settings, protocol = record.get("requested", {}), record.get("protocol", {})
    commit = f", commit `{origin.commit}`" if origin.commit else ""
    unknown = "that of the base model, which is not known here: look it up before you pass this on"
    licence = f"{origin.licence}, as the base model's" if origin.licence else unknown
    rows = {"base model": f"`{origin.name}`{commit}", "licence": licence}
    if "source" in record and not origin.commit and origin.hub_id:
        rows["its weights"] = record["source"]
    if method := settings.get("method"):
        paper, options = METHODS.get(method, ("", ()))
        parts = [f"`{method}`", *([f"after [arXiv {paper}](https://arxiv.org/abs/{paper})"] if paper else [])]
        parts += [f"{option} `{settings[option]}`" for option in options if option in settings]
        rows["method"] = ", ".join(parts)
    if recovery := settings.get("recovery"):
        rows["recovery"] = f"`{recovery}`, epochs `{settings['epochs']}`"
    if counts := record.get("parameters"):
        rows["parameters"] = f"{counts['dense_total']:,} → {counts['sliced_total']:,}"
        rows["of the decoder layers"] = f"{counts['dense_decoder']:,} → {counts['sliced_decoder']:,}"
    if cache := record.get("kv_bytes_per_token"):
        rows["KV cache, bytes per token"] = f"{cache['dense']:,} → {cache['sliced']:,}"
    if "calibration" in protocol:
        text = _text(protocol["calibration"])
        sampled = protocol.get("sampled_tokens")
        more = f" and {sampled:,} tokens sampled from the base model" if sampled else ""
        rows["calibrated on"] = f"{protocol['calibration_tokens']:,} tokens of {text}{more}, seed {protocol['seed']}"
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _perplexity(record: dict[str, Any], name: str, form: Form) -> str:
    heading = "## Perplexity\n\n"
    if "perplexity" not in record:
        command = f": `python -m intraslice evaluate --model {name}`" if form == "folder" else "."
        return f"{heading}Not measured yet{command}"
    errors, protocol = record.get("perplexity_error", {}), record["protocol"]
    cells = {}
    for model, value in record["perplexity"].items():
        error = errors.get(model)
        cells[model] = "unknown" if value is None else f"{value:.2f}" + (f" ± {error:.2f}" if error else "")
    table = f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n| {' | '.join(cells.values())} |"
    return (
        f"{heading}{table}\n\nOn {protocol['eval_tokens']:,} held-out tokens of {_text(protocol['eval'])} in windows "
        f"of {protocol['window']:,}, in {protocol['dtype']} with torch{'; ± is one standard error' if errors else ''}. "
        "Lower is better."
    )


def _usage(config: IntraSliceConfig, name: str, form: Form) -> list[str]:
    quoted_name = shlex.quote(name)
    if form == "gguf":
        return [f"With llama.cpp and tools built on it (architecture `deci`):\n\n    llama-cli -m {quoted_name}"]
    ways = [
        "With transformers, if the library `intraslice` is installed:\n\n"
        "```python\n"
        "import intraslice  # registers the model type; without it, pass trust_remote_code=True\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
        "```",
        "From the command line, also through lm-eval (`pip install lm-eval[hf]`):\n\n"
        f'    python -m intraslice generate --model {quoted_name} --prompt "Why does it rain?"\n'
        f"    python -m intraslice tasks --model {quoted_name} --tasks arc_easy\n"
        f"    lm_eval --model hf --model_args pretrained={quoted_name},trust_remote_code=True --tasks arc_easy",
    ]
    layer = config.layers[0]
    if layer["shortcuts"] or not layer["gated"]:
        obstacle = "shortcut matrices" if layer["shortcuts"] else "plain MLPs and parallel modules"
        return [*ways, f"Its {obstacle} keep it from running in llama.cpp (`deci`)."]
    export = f"python -m intraslice export --model {quoted_name} --gguf {quoted_name}.gguf --type q8_0"
    return [*ways, f"With llama.cpp, if it supports the family:\n\n    {export}"]


def _limits(record: dict[str, Any], origin: Origin) -> str:
    if "removed_fraction" not in record:
        return f"It has all limits and biases of {origin.name}."
    text = _text(record.get("protocol", {}).get("calibration", "unknown text"))
    settings = record.get("requested", {})
    trained = settings.get("epochs") and (settings.get("method") == "intraslice+" or "recovery" in settings)
    return (
        f"The remaining parameters were chosen {'and trained ' if trained else ''}on {text}. Abilities that this text "
        "does not exercise, such as other languages, code or long contexts, may have lost more than the perplexity "
        "shows. "
        f"{'It' if trained else 'It was not trained afterwards, and it'} has all limits and biases of {origin.name}."
    )


def _text(name: str) -> str:
    """The display name of a text, without its folder."""
    return _NAMED_TEXTS.get(name, Path(name).name)


def write_gguf_card(model: PreTrainedModel, record: dict[str, Any], file: Path) -> None:
    """Write the card of a GGUF file next to it, unless there is one by others."""
    card = file.with_suffix(".md")
    if not card.exists() or "\n- intraslice\n" in card.read_text(encoding="utf-8"):
        record = {key: value for key, value in record.items() if key != "kv_bytes_per_token"}  # the program's own there
        card.write_text(model_card(IntraSliceConfig.of(model, record), file.name, "gguf"), encoding="utf-8")
