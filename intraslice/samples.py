"""Text that the dense model writes itself, and the dense model's last hidden states with the tokens it expects.

Both depend on the dense model and the text alone. They are kept on disk and shared by all slices, methods and
sparsities of a model.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.core.cache import cache_path, read_result, write_result
from intraslice.core.config import CalibrationConfig
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.distributed import all_gather, rank
from intraslice.loading import LoadedModel, fingerprint_of
from intraslice.modeling.hidden_states import Tokens, logits_in_chunks, next_token_logits
from intraslice.token_windows import calibration_tokens

SAMPLES_FORMAT, STATES_FORMAT = "2", "3"
TEMPERATURE = 1.0  # of samples to calibrate and to search on
SAMPLE_TOKENS = 256  # of each sampled text; as the calibration's, texts are joined to sequences
SAMPLES_PER_BATCH = 64  # texts sampled together and kept in one file
STATES_PER_FILE = 32  # sequences
LIKELY_TOKENS = 4096  # of a sequence; at 512 tokens of Wikipedia they have 96 % of SmolLM2's probability


class KeptStates(NamedTuple):
    """What a dense model predicts in sequences."""

    hidden: Float[Tensor, "sequences length hidden"]  # final hidden states, the inputs of the head
    likely: Int[Tensor, "sequences likely"]  # each sequence's own tokens and the most probable others, ascending


def calibration_sequences(
    loaded: LoadedModel,
    config: CalibrationConfig,
    evaluation_text: str | None = None,
    *,
    progress: ProgressOption = True,
) -> Tokens:
    """The calibration tokens, then `config.samples` sequences that the model writes. UserError as for these tokens."""
    return with_samples(loaded, calibration_tokens(loaded.tokenizer, config, evaluation_text), config, progress)


def with_samples(
    loaded: LoadedModel, tokens: Tokens, config: CalibrationConfig, progress: ProgressOption
) -> Int[Tensor, "more length"]:
    """`tokens`, followed by the `config.samples` sequences that the dense model writes itself."""
    if not config.samples:
        return tokens
    report, size = progress_callback(progress), (config.samples, config.length)
    # From one process: another kind of processor may sample others.
    samples = kept_samples(loaded.model, size, TEMPERATURE, config.seed, report) if rank() == 0 else tokens[:0]
    return torch.cat([tokens, all_gather([samples])[0]])


def kept_samples(
    model: PreTrainedModel, size: tuple[int, int], temperature: float, seed: int, progress: ProgressCallback
) -> Int64[Tensor, "sequences length"]:
    """Sequences of joined texts that the model wrote, from the cache as far as it wrote them before.

    `size` is the number of sequences, and of tokens of each. More sequences begin with those of fewer.
    """
    sequences, length = size
    texts_per_sequence = -(-length // SAMPLE_TOKENS)
    text_length = -(-length // texts_per_sequence)
    batches = -(-sequences * texts_per_sequence // SAMPLES_PER_BATCH)
    samples, model_key = [], (fingerprint_of(model), model.dtype)
    for batch in range(batches):
        path = cache_path("samples", ".npz", SAMPLES_FORMAT, *model_key, text_length, temperature, seed, batch)
        if values := read_result(path, lambda file: _read(file, torch.int64)):
            (texts,) = values
        else:

            def report(done: int, total: int, batch: int = batch) -> None:
                progress(Progress("samples", batch * total + done, batches * total))

            generator = torch.Generator().manual_seed(2**20 * seed + batch)
            texts = sample_texts(model, (SAMPLES_PER_BATCH, text_length), temperature, generator, report)
            _write(path, "samples of the dense model", texts)
        samples.append(texts)
    texts = torch.cat(samples)[: sequences * texts_per_sequence]
    return texts.view(sequences, -1)[:, :length]


def kept_states(model: PreTrainedModel, tokens: Tokens, progress: ProgressCallback) -> KeptStates:
    """The model's states in the sequences, on the CPU; from the cache as far as possible."""
    states: list[KeptStates] = []
    model_key = fingerprint_of(model), model.dtype
    for part in tokens.split(STATES_PER_FILE):
        path = cache_path("states", ".npz", STATES_FORMAT, *model_key, LIKELY_TOKENS, part)
        if values := read_result(path, lambda file: _read(file, model.dtype, torch.int32)):
            states.append(KeptStates(*values))
        else:
            rows = []
            for sequence in part:
                hidden, likely = states_of(model, sequence.to(model.device))
                rows.append((hidden.cpu(), likely.int().cpu()))
                progress(Progress("dense states", STATES_PER_FILE * len(states) + len(rows), len(tokens)))
            states.append(KeptStates(*map(torch.stack, zip(*rows, strict=True))))
            _write(path, "states of the dense model", *states[-1])
    return KeptStates(*map(torch.cat, zip(*states, strict=True)))


@torch.no_grad()
def states_of(
    model: PreTrainedModel, texts: Int[Tensor, "*texts length"]
) -> tuple[Float[Tensor, "tokens hidden"], Int[Tensor, " likely"]]:
    """Final hidden states of texts of equal length, and their own and the most probable tokens, ascending."""
    hidden = last_hidden(model, texts)
    probability = torch.zeros(model.lm_head.out_features, device=hidden.device)
    for (logits,) in logits_in_chunks(model.lm_head, hidden):
        probability += logits.softmax(-1).sum(0)
    probability[texts] = torch.inf
    return hidden, probability.topk(likely_size(model, texts.numel())).indices.sort().values


def likely_size(model: PreTrainedModel, length: int) -> int:
    """The number of likely tokens of a sequence of this length."""
    return min(max(LIKELY_TOKENS, length), model.lm_head.out_features)


@torch.no_grad()
def sample_texts(
    model: PreTrainedModel,
    size: tuple[int, int],
    temperature: float,
    generator: torch.Generator,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Int64[Tensor, "texts length"]:
    """Texts that the model continues from one random token each, by sampling from its whole distribution.

    Random first tokens lead to more kinds of text (prose, lists, programs) than the beginnings of one corpus. What
    follows an end token is kept. `size` is the number of texts, and of tokens of each; `report` is called after every
    token of all texts, with the numbers of tokens so far and in all.
    """
    texts, length = size
    columns = [torch.randint(model.lm_head.out_features, (texts, 1), generator=generator)]
    cache: dict[str, Any] = {}
    while len(columns) < length:
        logits, cache = next_token_logits(model, columns[-1].to(model.device), cache)
        columns.append(_sample(logits.float().cpu() / temperature, generator))
        report(texts * len(columns), texts * length)
    return torch.cat(columns, dim=1)


def _sample(logits: Float[Tensor, "batch vocabulary"], generator: torch.Generator) -> Int64[Tensor, "batch 1"]:
    """One token per row by inversion, which needs one random number per token instead of one per logit."""
    cumulative = logits.softmax(-1).cumsum(-1)
    threshold = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).clamp_max(logits.shape[-1] - 1)


def last_hidden(model: PreTrainedModel, texts: Int[Tensor, "*texts length"]) -> Float[Tensor, "tokens hidden"]:
    """Final hidden states of one text, or of several of equal length."""
    rows = texts.reshape(-1, texts.shape[-1])
    return model.model(input_ids=rows, use_cache=False).last_hidden_state.flatten(0, 1)


def _write(path: Path, what: str, *tensors: Tensor) -> None:
    # numpy has no bfloat16
    bits = [tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]
    arrays, size = [tensor.numpy() for tensor in bits], sum(tensor.nbytes for tensor in tensors)
    write_result(path, lambda file: numpy.savez(file, *arrays), f"{what} ({size / 1e6:.0f} MB)", size + 1024)


def _read(path: Path, *dtypes: torch.dtype) -> list[Tensor]:
    """Cached tensors. May raise any exception for a damaged file."""
    with numpy.load(path, allow_pickle=False) as archive:
        arrays = [archive[name] for name in archive.files]
    return [torch.from_numpy(array).view(dtype) for array, dtype in zip(arrays, dtypes, strict=True)]
