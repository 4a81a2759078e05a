"""The model card (README.md) of whatever leaves the house: what it is a slice of, how it was made, where it runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import ModelCard, ModelCardData

from intraslice.checkpoints.auto_class import IntraSliceConfig
from intraslice.pretrained.sources import DEFAULT, DEFAULT_HUB_ID, SUGGESTED_MODELS

CARD = "README.md"
Form = Literal["folder", "gguf", "vllm"]
# The paper of a method, and those options that it looks at.
METHODS = {
    "intraslice": ("2602.01975", ("order", "estimator")),
    "intraslice+": ("2602.01975", ("estimator", "epochs")),
    "crossmodule": ("2401.15024", ("order",)),
}
# Licences that the Hub knows by another name than ours, which is its own in capitals.
_LICENCES = {"Llama 3.2 Community License, access on request": "llama3.2"}
_FROM_THE_HUB = re.compile(r"(\S+) from the Hugging Face Hub, commit (\w+)(?:, (.+))?$")  # as sources.py says it
_NAMED_TEXTS = {"default": "Wikipedia"}


@dataclass(frozen=True)
class Origin:
    """The dense model, as far as a record tells."""

    name: str
    hub_id: str | None
    commit: str | None
    licence: str | None

    @classmethod
    def of(cls, made: dict[str, Any]) -> Origin:
        """A folder or a file has no id on the Hub, and its licence is not known."""
        asked = made.get("asked", {}).get("model", "")
        found = _FROM_THE_HUB.match(made.get("source", ""))
        hub_id, commit, licence = found.groups() if found else (None, None, SUGGESTED_MODELS.get(asked))
        if asked == DEFAULT:
            hub_id = DEFAULT_HUB_ID
        return cls(hub_id or Path(asked).name or "a dense model", hub_id, commit, licence)


@dataclass(frozen=True)
class DenseHeads:
    """Of every layer of the dense model."""

    queries: int
    groups: int
    width: int

    @classmethod
    def of(cls, dense: dict[str, Any]) -> DenseHeads:
        """By the configuration of the dense model."""
        queries = dense["num_attention_heads"]
        width = dense.get("head_dim") or dense["hidden_size"] // queries
        return cls(queries, dense.get("num_key_value_heads") or queries, width)


def only_mlps(config: IntraSliceConfig) -> bool:
    """Whether no layer has fewer or narrower heads than the dense model, nor shortcuts."""
    heads = DenseHeads.of(config.dense)
    group = heads.queries // heads.groups
    whole = {
        "kv_head": [head // group for head in range(heads.queries)],
        "dim": heads.width,
        "value_dim": heads.width,
        "shortcuts": [],
    }
    return all(whole.items() <= layer.items() for layer in config.layers)


def model_card(config: IntraSliceConfig, name: str, form: Form = "folder") -> str:
    """The card of what is called `name`, be it a folder of `save`, a GGUF file or a folder for vLLM. Markdown.

    What the record in `config.made` does not hold, such as perplexities that nobody measured, is said to be unknown;
    of a dense model it holds `source`, and `asked` with its `model`.
    """
    made, origin = config.made or {}, Origin.of(config.made or {})
    sections = [f"# {name}", _summary(made, origin), _facts(made, origin), _perplexity(made, name, form)]
    sections += ["## How to run it", *_ways(config, name, form), "## Limits", _limits(made, origin)]
    head = _front_matter(origin, form).to_yaml()
    return ModelCard(f"---\n{head}\n---\n\n" + "\n\n".join(sections) + "\n").content


def _front_matter(origin: Origin, form: Form) -> ModelCardData:
    # The Hub's words are adapter, finetune, merge and quantized. It has none for pruning: what is pruned here has fewer
    # weights, and other values in those that stay. Of a GGUF file it believes that it is quantised.
    relation: dict[str, Any] = (
        {"base_model_relation": "quantized" if form == "gguf" else "finetune"} if origin.hub_id else {}
    )
    return ModelCardData(
        base_model=origin.hub_id,
        license=origin.licence and _LICENCES.get(origin.licence, origin.licence.lower()),
        library_name="transformers" if form == "folder" else form,
        pipeline_tag="text-generation",
        tags=["intraslice", "pruning"],
        **relation,
    )


def _summary(made: dict[str, Any], origin: Origin) -> str:
    base = f"[{origin.hub_id}](https://huggingface.co/{origin.hub_id})" if origin.hub_id else f"`{origin.name}`"
    if "removed_fraction" not in made:
        return f"{base}, written by IntraSlice."
    removed = f"{100 * made['removed_fraction']:.1f} % of its decoder layers' parameters"
    return f"{base} with {removed} removed: smaller tensors, nothing is masked. The context length is the base model's."


def _facts(made: dict[str, Any], origin: Origin) -> str:
    asked, protocol = made.get("asked", {}), made.get("protocol", {})
    commit = f", commit `{origin.commit}`" if origin.commit else ""
    rows = {"base model": f"`{origin.name}`{commit}", "licence": _licence(origin)}
    if "source" in made and not origin.commit and origin.hub_id:
        rows["its weights"] = made["source"]
    if method := asked.get("method"):
        paper, options = METHODS.get(method, ("", ()))
        words = [f"`{method}`", *([f"after [arXiv {paper}](https://arxiv.org/abs/{paper})"] if paper else [])]
        rows["method"] = ", ".join([*words, *(f"{option} `{asked[option]}`" for option in options if option in asked)])
    if recovery := asked.get("recovery"):
        rows["recovery"] = f"`{recovery}`, epochs `{asked['epochs']}`"
    if counts := made.get("parameters"):
        rows["parameters"] = f"{counts['dense_total']:,} → {counts['sliced_total']:,}"
        rows["of the decoder layers"] = f"{counts['dense_decoder']:,} → {counts['sliced_decoder']:,}"
    if cache := made.get("kv_bytes_per_token"):
        rows["KV cache, bytes a token"] = f"{cache['dense']:,} → {cache['sliced']:,}"
    if "calibration" in protocol:
        text = _text(protocol["calibration"])
        rows["calibrated on"] = f"{protocol['calibration_tokens']:,} tokens of {text}, seed {protocol['seed']}"
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _licence(origin: Origin) -> str:
    if origin.licence:
        return f"{origin.licence}, as the base model's"
    return "that of the base model, which is not known here: look it up before you pass this on"


def _perplexity(made: dict[str, Any], name: str, form: Form) -> str:
    head = "## Perplexity\n\n"
    if "perplexity" not in made:
        how = f": `python -m intraslice evaluate --model {name}`" if form == "folder" else "."
        return f"{head}Not measured yet{how}"
    errors, protocol = made.get("perplexity_error", {}), made["protocol"]
    cells = {}
    for model, value in made["perplexity"].items():
        error = errors.get(model)
        cells[model] = "unknown" if value is None else f"{value:.2f}" + (f" ± {error:.2f}" if error else "")
    table = f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n| {' | '.join(cells.values())} |"
    return (
        f"{head}{table}\n\nOn {protocol['eval_tokens']:,} held-out tokens of {_text(protocol['eval'])} in windows of "
        f"{protocol['window']:,}, in {protocol['dtype']} with torch{'; ± is one standard error' if errors else ''}. "
        "Lower is better."
    )


def _ways(config: IntraSliceConfig, name: str, form: Form) -> list[str]:
    here = shlex.quote(name)
    if form == "gguf":
        return [f"With llama.cpp, and what is built on it (it is of architecture `deci`):\n\n    llama-cli -m {here}"]
    if form == "vllm":
        line = f"vllm serve {here} --trust-remote-code"
        return [f"With vLLM, whose `nemotron_nas` reads it; the code is the class of its configuration:\n\n    {line}"]
    ways = [
        "With transformers, where the library `intraslice` is installed:\n\n"
        "```python\n"
        "import intraslice  # makes this kind of model known; without it, trust_remote_code=True\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({name!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})\n"
        "```",
        "From the command line, also through lm-eval (`pip install lm-eval[hf]`):\n\n"
        f'    python -m intraslice generate --model {here} --prompt "Why does it rain?"\n'
        f"    python -m intraslice tasks --model {here} --tasks arc_easy\n"
        f"    lm_eval --model hf --model_args pretrained={here},trust_remote_code=True --tasks arc_easy",
    ]
    layer = config.layers[0]
    if layer["shortcuts"] or not layer["gated"]:
        kept = "shortcut matrices" if layer["shortcuts"] else "plain MLPs and parallel modules"
        return [*ways, f"Its {kept} keep it from llama.cpp's `deci` and from vLLM's `nemotron_nas`."]
    export = f"python -m intraslice export --model {here}"
    ways.append(f"With llama.cpp, where the family allows it:\n\n    {export} --gguf {here}.gguf --type q8_0")
    if only_mlps(config):
        return [*ways, f"With vLLM, where the family allows it:\n\n    {export} --vllm {here}-vllm"]
    return [*ways, "Not with vLLM, which wants the same heads in all layers; slices of the MLPs alone fit."]


def _limits(made: dict[str, Any], origin: Origin) -> str:
    if "removed_fraction" not in made:
        return f"It has all limits and biases of {origin.name}."
    text = _text(made.get("protocol", {}).get("calibration", "unknown text"))
    asked = made.get("asked", {})
    trained = asked.get("method") == "intraslice+" or "recovery" in asked
    return (
        f"What it keeps was chosen {'and trained ' if trained else ''}on {text}; what that does not show, such as "
        "other languages, code or long contexts, may have suffered more than the perplexity says. "
        f"{'It' if trained else 'It was not trained afterwards, and it'} has all limits and biases of {origin.name}."
    )


def _text(name: str) -> str:
    """What a text is called, without the folder that it lies in."""
    return _NAMED_TEXTS.get(name, Path(name).name)
