"""Runs calibration tokens through a model layer by layer, so that a layer can be changed before the next one runs."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.core.progress import Pause, no_pause
from intraslice.modeling.families import DenseModule, family_of
from intraslice.modeling.surgery import replace_modules

TOKENS_PER_BATCH = 2048
LOGIT_TOKENS = 128  # larger chunks are a third slower, as the memory for their logits is mapped anew each time
Tokens = Int[Tensor, "sequences length"]
Windows = Int[Tensor, "windows window"]  # of a held-out text
Arguments = dict[str, Any]  # what a layer is called with besides the hidden states
LayerArguments = Sequence[Arguments]  # of every layer: masks and rotary frequencies may differ from layer to layer


def require_model(model: object) -> None:
    """Raise UserError unless `model` is a transformers model; a `LoadedModel` is not, but has one."""
    if not isinstance(model, PreTrainedModel):
        message = "expected a transformers model, got {type}; of a LoadedModel pass its `model`"
        raise UserError(message, type=type(model).__name__)


def require_length(length: int, config: PreTrainedConfig) -> None:
    """Raise UserError if a sequence of `length` tokens has more tokens than the model has positions."""
    if length > config.max_position_embeddings:
        message = "length must be at most {limit:,}, the model's maximum context length, got {length:,}"
        raise UserError(message, limit=config.max_position_embeddings, length=length)


def require_windows(tokens: Tensor, config: PreTrainedConfig) -> None:
    """Raise UserError unless `tokens` has windows of two or more tokens, and the model has positions for them."""
    shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else ()
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 2 or tokens.dtype != torch.int64:
        raise UserError(
            "expected a tensor of int64 with shape (windows, tokens), one window or more of two tokens or "
            "more, got {received}",
            received=f"shape {shape} of {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__,
        )
    require_length(tokens.shape[1], config)
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise UserError("tokens must be from 0 to {last:,}; use the model's tokenizer", last=config.vocab_size - 1)


class _Recorder(torch.nn.Module):
    """Takes the place of a decoder layer, and records what it is called with instead of computing anything."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: list[Tensor] = []
        self.arguments: list[Arguments] = []

    def forward(self, hidden_states: Tensor, **keywords: Any) -> Tensor:
        self.hidden.append(hidden_states)
        self.arguments.append({key: keywords[key] for key in ("attention_mask", "position_embeddings")})
        return hidden_states


@dataclass
class HiddenStates:
    """One hidden state per token, batch by batch, and the other arguments of every layer."""

    hidden: list[Float[Tensor, "batch tokens hidden"]]
    arguments: list[LayerArguments]  # attention mask and position embeddings, by batch and layer

    @property
    def batches(self) -> list[tuple[Tensor, LayerArguments]]:
        """The states of each batch (batch, tokens, hidden), with the batch's arguments."""
        return list(zip(self.hidden, self.arguments, strict=True))

    def map_(self, change: Callable[[Tensor, LayerArguments], Tensor], pause: Pause = no_pause) -> None:
        """Replace the states of each batch, in place, by `change(states, arguments)`; `pause` is called after each."""
        for index, (hidden, arguments) in enumerate(self.batches):
            self.hidden[index] = change(hidden, arguments)
            pause()

    def pass_through_(self, layer: torch.nn.Module, pause: Pause = no_pause) -> None:
        """Replace the states of each batch, in place, by the output of the decoder layer."""
        self.map_(lambda hidden, arguments: call_layer(layer, hidden, arguments), pause)


def final_norm(model: PreTrainedModel) -> torch.nn.Module:
    """The norm before the head."""
    return getattr(model.model, family_of(model.config).final_norm)


def device_of(model: PreTrainedModel) -> torch.device:
    """The device on which the model computes, where its norms are; other weights may be elsewhere."""
    return next(final_norm(model).parameters()).device


def call_layer(layer: DenseModule, hidden: Tensor, arguments: LayerArguments) -> Float[Tensor, "batch tokens hidden"]:
    """The output of a decoder layer, canonical or cross-module, for one batch."""
    return layer(hidden, **arguments[layer.self_attn.layer_idx])


def embed(model: PreTrainedModel, tokens: Tokens) -> HiddenStates:
    """The inputs of the first layer, with the masks and position embeddings that transformers computes for all."""
    # A copy that shares the embedding; the model itself is not changed, so that other jobs may use it.
    recorders = {layer: _Recorder() for layer in model.model.layers}
    kept = {model.model.embed_tokens: model.model.embed_tokens}  # a copy's hooks would keep its weight for a while
    shell = replace_modules(model.model, {**recorders, **kept, final_norm(model): torch.nn.Identity()})
    for batch in tokens.split(max(1, TOKENS_PER_BATCH // tokens.shape[1])):
        shell(input_ids=batch.to(model.device), use_cache=False)
    first, *_ = recorders.values()
    by_layer = [recorder.arguments for recorder in recorders.values()]
    return HiddenStates(first.hidden, list(zip(*by_layer, strict=True)))


def last_states(
    model: PreTrainedModel, layers: Iterable[torch.nn.Module], hidden_states: HiddenStates, pause: Pause = no_pause
) -> Float[Tensor, "tokens hidden"]:
    """Inputs of the head, after `layers` and the final norm, for every token except the last of each sequence.

    Does not modify `hidden_states`. `pause` is called after each layer of each batch.
    """
    norm = final_norm(model)
    states = []
    for hidden, arguments in hidden_states.batches:
        for layer in layers:
            hidden = call_layer(layer, hidden, arguments)
            pause()
        states.append(norm(hidden)[:, :-1].flatten(0, 1))
    return torch.cat(states)


def logits_in_chunks(
    head: Callable[[Tensor], Tensor], hidden: Float[Tensor, "tokens hidden"], *aligned: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Float32 logits of a head, in chunks of `LOGIT_TOKENS` tokens, with the same rows of each `aligned`."""
    for rows, *aligned_rows in zip(*(tensor.split(LOGIT_TOKENS) for tensor in (hidden, *aligned)), strict=True):
        yield head(rows).float(), *aligned_rows


def next_token_logits(
    model: PreTrainedModel, tokens: Int[Tensor, "batch tokens"], cache: Mapping[str, Any], **inputs: Tensor
) -> tuple[Float[Tensor, "batch vocabulary"], dict[str, Any]]:
    """Logits of the token after `tokens`, and the cache for the next call. Pass an empty cache to the first call.

    `inputs` are further arguments of the model, such as the mask of left-padded prompts.

    The head gets a matrix. `logits_to_keep` would pass it a three-dimensional slice, for which torch runs a batched
    product that copies the head's weights; in bfloat16 this costs a third of the time of all layers.
    """
    output = model.model(input_ids=tokens, use_cache=True, **cache, **inputs)
    keyword = cache_keyword(model)
    return model.lm_head(output.last_hidden_state[:, -1]), {keyword: getattr(output, keyword)}


def cache_keyword(model: PreTrainedModel) -> str:
    """The name of the key/value cache in the model's forward and in its output.

    transformers renames it: 5.24 warns about `past_key_values`; earlier versions do not accept `cache`.
    """
    return "cache" if "cache" in inspect.signature(model.model.forward).parameters else "past_key_values"
