"""The bytes of a plan's weights in a file, and of the key/value cache, from shapes alone: nothing is sliced."""

import json
from collections import Counter
from typing import Any

from gguf import GGUFWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from intraslice.checkpoints.gguf_tensors import stored_neurons
from intraslice.checkpoints.to_gguf import GGUFType, TensorSizes, gguf_bytes, head_name, stored_type, tensor_sizes
from intraslice.modeling.families import blocks, head_width
from intraslice.planning.ratios import SlicePlan

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes per value
DESCRIPTION = 1024  # bytes, at most, of the name and the description in a GGUF file
CONTEXT_BLOCK = 256  # tokens, in multiples of which llama.cpp allocates its cache


class PlannedFolder:
    """The model.safetensors of a folder, and the static cache of transformers, both in `dtype`.

    `narrows_queries`: queries and keys become as narrow as the values, except where they are normalised.
    """

    def __init__(self, model: PreTrainedModel, dtype: str, narrows_queries: bool) -> None:
        self._model, self._bytes = model, DTYPES[dtype]
        attentions = [block.attention for block in blocks(model)]
        self._query_dims = [a.dim if a.norms is not None or not narrows_queries else None for a in attentions]
        offsets = 2 * [self._bytes * sum(parameter.numel() for parameter in model.parameters())]
        header = {
            name: {"dtype": "BF16", "shape": [*tensor.shape], "data_offsets": offsets}
            for name, tensor in model.state_dict().items()
        }
        self._header = len(json.dumps({"__metadata__": {"format": "pt"}} | header, separators=(",", ":"))) + 16

    def file(self, plan: SlicePlan) -> int:
        """The size of the file: never less than it will have, and at most some bytes more."""
        return self._header + self._bytes * plan.parameters.sliced_total

    def cache(self, plan: SlicePlan, context: int) -> int:
        """The bytes allocated for so many tokens, fewer in a sliding window; without heads, two values count tokens."""
        slots: list[Any] = StaticCache(config=self._model.config, max_cache_len=context).layers
        values = 0
        for layer, query_dim, slot in zip(plan.layers, self._query_dims, slots, strict=True):
            values += max(layer.kv_heads * ((query_dim or layer.dim) + layer.dim), 2) * slot.max_cache_len
        return self._bytes * values


class PlannedGGUF:
    """The GGUF file, and llama.cpp's cache: float16, and heads of full width. Raises UserError as `require_deci`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gguf_type: GGUFType) -> None:
        self._header = gguf_bytes(model, tokenizer, gguf_type)
        self._dense = tensor_sizes(model, gguf_type)
        self._header += DESCRIPTION - self._dense.all_bytes()
        self._type, self._head, self._width = gguf_type, head_name(model), head_width(model.config)
        self._kv_heads = [block.attention.kv_head.tolist() for block in blocks(model)]

    def file(self, plan: SlicePlan) -> int:
        """The size of the file: never less than it will have, and at most some bytes more."""
        shapes = self._shapes(plan)
        types = {name: stored_type(name, shape, self._type, self._head) for name, shape in shapes.items()}
        return self._header + TensorSizes(shapes, types, padding=0).all_bytes()

    def cache(self, plan: SlicePlan, context: int) -> int:
        """The bytes allocated for so many tokens."""
        rows = sum(shape[0] for name, shape in self._shapes(plan).items() if name.endswith("attn_k.weight"))
        return 2 * 2 * rows * GGUFWriter.ggml_pad(context, CONTEXT_BLOCK)

    def _shapes(self, plan: SlicePlan) -> dict[str, tuple[int, ...]]:
        """The shapes that `gguf_tensors.deci_tensors` has for the sliced model."""
        shapes = dict(self._dense.shapes)
        for index, (layer, kv_head) in enumerate(zip(plan.layers, self._kv_heads, strict=True)):
            groups = Counter(kv_head[head] for head in layer.heads) or {0: 1}
            keys, neurons = len(groups) * self._width, stored_neurons(layer.neurons)
            queries, prefix = keys * max(groups.values()), f"blk.{index}."
            rows = {"attn_q": queries, "attn_k": keys, "attn_v": keys, "ffn_gate": neurons, "ffn_up": neurons}
            columns = {"attn_output.weight": queries, "ffn_down.weight": neurons}
            has_attention = index == 0 or layer.heads or f"{prefix}attn_output.bias" in shapes
            for name in [name for name in shapes if name.startswith(prefix)]:
                tensor, shape = name.removeprefix(prefix), shapes[name]
                if tensor.startswith("attn_") and not has_attention:
                    del shapes[name]
                elif tensor in columns:
                    shapes[name] = (shape[0], columns[tensor])
                else:
                    shapes[name] = (rows.get(tensor.partition(".")[0], shape[0]), *shape[1:])
        return shapes
