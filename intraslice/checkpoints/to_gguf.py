"""Writes a model and its tokenizer as a GGUF file for llama.cpp, atomically, or rounds a model like the file."""

import copy
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import gguf
import numpy
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints.deci_tensors import (
    DECI,
    SAVE_AS_FOLDER,
    deci_tensors,
    shared_heads,
    short_context,
    stored_attention,
    stored_mlp,
)
from intraslice.checkpoints.format import require_new_file, written_whole
from intraslice.checkpoints.gguf_tokenizer import Fields, read_tokenizer
from intraslice.core.checks import one_of
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressOption, progress_callback
from intraslice.core.weights import converted
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import blocks
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import resident
from intraslice.modeling.residual import CrossModuleLayer
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.sizes import BLOCK

GGUFType = Literal["f32", "f16", "q8_0", "q5_0", "q4_0"]
GGUF_TYPES: tuple[GGUFType, ...] = get_args(GGUFType)
QUANTISED: tuple[GGUFType, ...] = ("q8_0", "q5_0", "q4_0")
NO_CROSS_MODULE = f"a cross-module model has shortcut matrices, which llama.cpp does not support; {SAVE_AS_FOLDER}"


@dataclass(frozen=True)
class GGUFReport:
    """The written file. `padding_bytes` counts the zeros that pad narrow heads, ragged groups and odd widths."""

    file: str
    type: GGUFType
    bytes: int
    padding_bytes: int
    as_f16: tuple[str, ...]  # tensors that are not quantised, as their rows are not whole blocks
    context_length: int


@dataclass(frozen=True)
class TensorSizes:
    """Shape and stored type of every tensor, by name, and the number of padding bytes."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, GGMLQuantizationType]
    padding: int

    def bytes(self, name: str) -> int:
        block, size = GGML_QUANT_SIZES[self.types[name]]
        return int(numpy.prod(self.shapes[name])) // block * size

    def all_bytes(self) -> int:
        """The bytes of all tensors, each padded to the file's alignment."""
        return sum(GGUFWriter.ggml_pad(self.bytes(name), gguf.GGUF_DEFAULT_ALIGNMENT) for name in self.shapes)


def padding_text(count: int) -> str:
    """A phrase for the number of padding bytes in a file."""
    return f"{count / 1e6:.3g} MB of padding" if count else "no padding"


def require_deci(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Fields:
    """The tokenizer metadata for the file. Raises UserError if llama.cpp's `deci` does not support model or tokenizer.

    The result for a dense model holds for its slices too, except for cross-module ones.
    """
    require_deci_layers(model)
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    return read_tokenizer(tokenizer, model.model.embed_tokens.num_embeddings, stops)


def require_deci_layers(model: PreTrainedModel) -> None:
    """`require_deci` without the tokenizer: reads no weights."""
    if isinstance(model.model.layers[0], CrossModuleLayer):
        raise UserError(NO_CROSS_MODULE)
    block = blocks(model)[0]
    if block.attention.norms is not None:
        output_norms = " and after every module" if block.attention_output_norm is not None else ""
        raise UserError(
            f"a {model.config.model_type} model has norms on queries and keys{output_norms}, which {DECI} does not "
            "have, and llama.cpp's architectures with these norms require the same heads and widths in all layers; "
            f"{SAVE_AS_FOLDER}"
        )
    if block.parallel or not hasattr(block.mlp_norm, "variance_epsilon") or model.lm_head.bias is not None:
        raise UserError(
            f"{DECI} requires RMSNorm and sequential modules, and a model of type {model.config.model_type} has "
            f"LayerNorm or parallel modules; {SAVE_AS_FOLDER}"
        )
    if not block.mlp.gated or block.mlp.activation != "silu":
        raise UserError(
            f"{DECI} requires gated MLPs with silu, but this model's activation is {block.mlp.activation}"
            f"{'' if block.mlp.gated else ' without a gate'}; {SAVE_AS_FOLDER}"
        )
    shared_heads(model)


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    file: str | Path,
    gguf_type: GGUFType = "f16",
    name: str = "",
    record: dict[str, Any] | None = None,
    *,
    progress: ProgressOption = True,
) -> GGUFReport:
    """Write a canonical model and its tokenizer to `file`, with one tensor in memory at a time.

    Norms and biases stay float32. `name` is the name of the model, `record` the record of a slice. `progress` counts
    tensors. Raises UserError as `require_new_file` and `require_deci` do, for an unknown type, for values beyond the
    range of float16, and if the disk is full.
    """
    one_of("the GGUF type", gguf_type, GGUF_TYPES)
    file = require_new_file(file, ".gguf")
    vocabulary = require_deci(model, tokenizer)
    sizes = tensor_sizes(model, gguf_type)
    needed, free = sizes.all_bytes(), shutil.disk_usage(file.parent).free
    if needed > free:
        raise UserError(f"{file} needs {needed / 1e6:.0f} MB, but only {free / 1e6:.0f} MB is free; free some space")
    with written_whole(file, needed) as temporary_file, closing(GGUFWriter(temporary_file, "deci")) as writer:
        record = record or {}
        # llama.cpp recognises some tokenizers by the name of the dense model.
        if name := Path(record.get("requested", {}).get("model", name)).name:
            writer.add_name(name)
        if "removed_fraction" in record:
            removed = f"{record['removed_fraction']:.1%} of the decoder layers' parameters removed"
            writer.add_description(f"{removed}; {padding_text(sizes.padding)}")
        _write_header(writer, model, sizes, gguf_type, vocabulary)
        report, total = progress_callback(progress), len(sizes.shapes)
        for done, (tensor_name, tensor) in enumerate(deci_tensors(model)):
            report(Progress("gguf", done, total))
            writer.write_tensor_data(stored_values(tensor_name, tensor.values, sizes.types[tensor_name]))
        report(Progress("gguf", total, total))
    smaller = tuple(name for name, kind in sizes.types.items() if gguf_type in QUANTISED and kind.name == "F16")
    return GGUFReport(str(file), gguf_type, file.stat().st_size, sizes.padding, smaller, _context_length(model))


def gguf_bytes(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gguf_type: GGUFType) -> int:
    """The size of the file that `write_gguf` would write without name and description. Raises UserError as it does."""
    vocabulary, sizes = require_deci(model, tokenizer), tensor_sizes(model, gguf_type)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "header.gguf"
        with closing(GGUFWriter(file, "deci")) as writer:
            _write_header(writer, model, sizes, gguf_type, vocabulary)
        return GGUFWriter.ggml_pad(file.stat().st_size, gguf.GGUF_DEFAULT_ALIGNMENT) + sizes.all_bytes()


def stored_values(name: str, values: Tensor, kind: GGMLQuantizationType) -> numpy.ndarray[Any, Any]:
    """The tensor as the file holds it. Raises UserError for values beyond the range of float16."""
    with numpy.errstate(over="ignore"):
        stored = gguf.quantize(values.contiguous().numpy(), kind)
    if stored.dtype == numpy.float16 and not numpy.isfinite(stored).all():
        raise UserError(
            f"{name} has values beyond the range of float16; use GGUF type f32 (--type f32 on the "
            "command line), or save the model as a folder"
        )
    return stored


def stored_type(name: str, shape: Sequence[int], gguf_type: GGUFType, head: str) -> GGMLQuantizationType:
    """The type of a tensor in a file of type `gguf_type`. `head` is the name of the tensor that computes the logits."""
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if gguf_type in QUANTISED and shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    if gguf_type in QUANTISED and name == head:  # llama.cpp's own files of fewer bits hold it in more bits, too
        return GGMLQuantizationType.Q8_0
    return GGMLQuantizationType[gguf_type.upper()]


def head_name(model: PreTrainedModel) -> str:
    """The name of the tensor that computes the logits."""
    return "token_embd.weight" if model.config.tie_word_embeddings else "output.weight"


def tensor_sizes(model: PreTrainedModel, gguf_type: GGUFType) -> TensorSizes:
    """The sizes of all tensors in the file of a model."""
    shapes, types, padding, head = {}, {}, 0, head_name(model)
    for name, tensor in deci_tensors(model):
        shapes[name] = tuple(tensor.values.shape)
        types[name] = stored_type(name, shapes[name], gguf_type, head)
        block, size = GGML_QUANT_SIZES[types[name]]
        padding += (tensor.values.numel() - tensor.kept) * size // block
    return TensorSizes(shapes, types, padding)


def _write_header(
    writer: GGUFWriter, model: PreTrainedModel, sizes: TensorSizes, gguf_type: GGUFType, vocabulary: Fields
) -> None:
    """Everything but the tensors' data."""
    config, heads = model.config, shared_heads(model)
    layers = range(len(model.model.layers))

    def count(tensor: str, unit: int = 1) -> list[int]:
        return [sizes.shapes.get(f"blk.{layer}.{tensor}.weight", (0,))[0] // unit for layer in layers]

    writer.add_type("model")
    writer.add_file_type(LlamaFileType[f"{'ALL' if gguf_type == 'f32' else 'MOSTLY'}_{gguf_type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_uint64("intraslice.padding_bytes", sizes.padding)
    writer.add_vocab_size(sizes.shapes["token_embd.weight"][0])
    writer.add_context_length(_context_length(model))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_head_count(count("attn_q", heads.width))
    writer.add_head_count_kv(count("attn_k", heads.width))
    writer.add_feed_forward_length(count("ffn_up"))
    writer.add_key_length(heads.width)
    writer.add_value_length(heads.width)
    writer.add_rope_dimension_count(heads.width)
    writer.add_rope_freq_base(heads.base)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, shape in sizes.shapes.items():
        kind = sizes.types[name]
        writer.add_tensor_info(name, shape, numpy.dtype(numpy.float32), sizes.bytes(name), raw_dtype=kind)
    for name, value in vocabulary.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _context_length(model: PreTrainedModel) -> int:
    """The context length, limited to what deci computes alike: no sliding window, and no change of the frequencies."""
    config = model.config
    lengths = (config.max_position_embeddings, getattr(config, "sliding_window", None), short_context(config))
    return min(length for length in lengths if length)


@torch.no_grad()
def rounded_model(model: PreTrainedModel, gguf_type: GGUFType, *, progress: ProgressOption = True) -> PreTrainedModel:
    """A copy of a canonical model with exactly the weights that `write_gguf` stores, in float32, on the same device.

    The copy computes in float32, as the values of a quantised type are not representable in 16 bits. Activations are
    not rounded, unlike in llama.cpp. The model must be one that `require_deci` accepts. Raises UserError for values
    beyond the range of float16.
    """
    report, heads, head = progress_callback(progress), shared_heads(model), head_name(model)
    layers = blocks(model)

    def store(name: str, values: Tensor) -> Tensor:
        kind = stored_type(name, values.shape, gguf_type, head)
        return torch.from_numpy(gguf.dequantize(stored_values(name, values, kind), kind)).float()

    def stored(name: str, parameter: nn.Parameter) -> nn.Parameter:
        values = store(name, parameter.detach().float().cpu()).to(parameter.device)
        return nn.Parameter(values, requires_grad=False)

    embedding, lm_head = model.model.embed_tokens.weight, model.lm_head.weight
    replacements: dict[nn.Module | nn.Parameter, nn.Module | nn.Parameter] = {
        embedding: stored("token_embd.weight", embedding)
    }
    if lm_head is not embedding:
        replacements[lm_head] = stored("output.weight", lm_head)
    norms = [norm for block in layers for norm in (block.attention_norm, block.mlp_norm)]
    replacements |= {norm: copy.deepcopy(norm).float() for norm in (model.model.norm, *norms)}
    for index, block in enumerate(layers):
        report(Progress("round", index, len(layers)))
        with resident(block.attention):
            attention = block.attention.weights()
            if len(attention.query):
                attention = stored_attention(attention, heads, store)
            else:  # without heads, the file has its output bias alone
                attention = converted(attention, torch.float32)
        replacements[block.attention] = SlicedAttention(attention, index).to(model.device)
        with resident(block.mlp):
            replacements[block.mlp] = SlicedMLP(stored_mlp(block.mlp.weights(), store)).to(model.device)
    report(Progress("round", len(layers), len(layers)))
    return replace_modules(model, replacements)
