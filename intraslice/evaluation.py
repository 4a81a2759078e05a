"""What a model is worth: perplexity with its protocol, and text as it is generated."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, TextIteratorStreamer, set_seed

from intraslice.config import Progress

TOKENS_A_BATCH = 2048
LOGIT_TOKENS = 1024


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"]
) -> Float[Tensor, "windows window_minus_one"]:
    """Negative log-probability, in nats, of every token but the first of each window."""
    hidden = model.model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].to(model.device).flatten()
    losses = [
        functional.cross_entropy(model.lm_head(rows).float(), wanted, reduction="none")
        for rows, wanted in zip(hidden.split(LOGIT_TOKENS), targets.split(LOGIT_TOKENS), strict=True)
    ]
    return torch.cat(losses).view(len(tokens), -1)


def perplexity(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Progress, None, float]:
    """`exp` of the mean loss over all windows; yields progress by window. The first token of a window is not scored."""
    total, done = 0.0, 0
    yield Progress(stage, 0, len(tokens))
    for batch in tokens.split(max(1, TOKENS_A_BATCH // tokens.shape[1])):
        total += token_losses(model, batch).double().sum().item()
        done += len(batch)
        yield Progress(stage, done, len(tokens))
    mean = total / (tokens.shape[0] * (tokens.shape[1] - 1))
    return torch.tensor(mean, dtype=torch.float64).exp().item()  # infinite where math.exp would raise


def parameters_of(model: PreTrainedModel, name: str) -> dict[str, int]:
    """`{name}_total` and `{name}_decoder` (the decoder layers alone), counted on the tensors; tied ones count once."""
    decoder = sum(p.numel() for p in model.model.layers.parameters())
    return {f"{name}_total": sum(p.numel() for p in model.parameters()), f"{name}_decoder": decoder}


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that one more token adds to the key/value cache, over all layers."""
    attentions = [layer.self_attn for layer in model.model.layers]
    return sum(a.kv_heads * (a.dim + a.value_dim) for a in attentions) * model.dtype.itemsize


class _Stopped(StoppingCriteria):
    def __init__(self, *events: threading.Event | None) -> None:
        self.events = [event for event in events if event is not None]

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_) -> Tensor:
        return torch.full((len(input_ids),), any(event.is_set() for event in self.events), device=input_ids.device)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> dict[str, Tensor]:
    """The prompt as input ids and attention mask: through the chat template where there is one, raw otherwise."""
    if tokenizer.chat_template:
        encoding = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoding = tokenizer(prompt, return_tensors="pt")
    return {name: encoding[name] for name in ("input_ids", "attention_mask")}  # some add token types: nobody reads them


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    stop: threading.Event | None = None,
) -> Iterator[str]:
    """Stream the model's answer piece by piece; greedy at temperature 0. Setting `stop` ends it at the next token."""
    inputs = {name: tensor.to(model.device) for name, tensor in prompt_tokens(tokenizer, prompt).items()}
    abandoned = threading.Event()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    failure: list[BaseException] = []

    def work() -> None:
        try:
            set_seed(seed)
            model.generate(
                **inputs,
                **sampling,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                streamer=streamer,
                stopping_criteria=[_Stopped(stop, abandoned)],
            )
        except BaseException as error:  # raised again in the caller's thread
            failure.append(error)
            streamer.end()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        yield from streamer
    finally:  # a caller who leaves early stops the work
        abandoned.set()
        worker.join()
    if failure:
        raise failure[0]
