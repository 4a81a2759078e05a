"""A size in bytes as the target: the plan whose weights, and key/value cache, just fit. Nothing is sliced for it."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

from gguf import GGUFWriter
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from intraslice.calibration.stats import CalibrationStats, layer_sizes
from intraslice.checkpoints import to_gguf
from intraslice.checkpoints.deci_tensors import stored_neurons
from intraslice.checkpoints.to_gguf import GGUF_TYPES, GGUFType
from intraslice.core.checks import integer, one_of, quoted
from intraslice.core.config import MAX_SPARSITY
from intraslice.core.errors import UserError
from intraslice.distributed import all_gather
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS, Plan, plan_by
from intraslice.modeling.families import blocks, head_width
from intraslice.modeling.hidden_states import require_length
from intraslice.planning.ratios import SlicePlan
from intraslice.records import Recipe

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
STEPS, BISECTIONS = 80, 14  # of sparsities: a grid, as padding makes some plans larger than those of less sparsity
ENOUGH = 0.985  # of the target
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes per value
DESCRIPTION = 1024  # bytes, at most, of the name and the description in a GGUF file
CONTEXT_BLOCK = 256  # tokens, in multiples of which llama.cpp allocates its cache
PlanAt = Callable[[float], SlicePlan]  # of a sparsity
PlanBytes = Callable[[SlicePlan], int]


class SizeTarget(NamedTuple):
    """At most so many bytes for the weights, stored as `kind`, and the key/value cache of `context` tokens.

    `kind` is a GGUF type, for the GGUF file; or a dtype, by default the model's, for the folder's model.safetensors.
    """

    bytes: int
    kind: str | None
    context: int


def parse_size(text: str, context: int = 0) -> SizeTarget:
    """Parse a size such as "200 MB" or, with the type of the stored weights, "200 MB q8_0". Raises UserError."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{0,9})?)\s*([kmg]i?b)(?:\s+(\w+))?\s*", str(text), re.IGNORECASE)
    if match is None:
        raise UserError(
            "size must be a number of kB, MB, GB, KiB, MiB or GiB, with or without the type of the weights, such as "
            "200 MB or 200 MB q8_0, got {value}",
            value=quoted(text),
        )
    if match[3] is not None:
        one_of("the type of the weights", match[3], (*DTYPES, *GGUF_TYPES))
    return SizeTarget(int(float(match[1]) * UNITS[match[2].lower()]), match[3], integer("context", context, 0))


def plan_recipe(
    recipe: Recipe,
    loaded: LoadedModel,
    stats: CalibrationStats | None,
    slicing: float | None = None,
    size: SizeTarget | None = None,
) -> tuple[Plan, Recipe]:
    """A recipe's plan, the same in all processes, and the recipe; with a size, at the sparsity that meets it."""

    def plan_at(sparsity: float) -> Plan:
        return plan_by(recipe.method, loaded.model, stats, replace(recipe.slicing, sparsity=sparsity), slicing)

    if size is None:
        plan = plan_at(recipe.slicing.sparsity)
    elif METHODS[recipe.method].slices_residual_stream:
        raise UserError("a size cannot be the target of method {method}; use sparsity instead", method=recipe.method)
    else:
        at = cast(PlanAt, plan_at)
        size = size._replace(kind=size.kind or recipe.dtype)
        plan = plan_within(size, loaded, at, min(MAX_SPARSITY, recipe.slicing.cap), recipe.method)
    plan = all_gather([plan])[0]  # one plan for all processes, as machines may round differently
    if isinstance(plan, SlicePlan):
        recipe = replace(recipe, slicing=replace(recipe.slicing, sparsity=plan.config.sparsity))
    return plan, recipe


def plan_within(
    size: SizeTarget, loaded: LoadedModel, plan_at: PlanAt, highest: float, method: str = "intraslice"
) -> SlicePlan:
    """The plan of the smallest sparsity that has at least `ENOUGH` of the target, and not more; else the largest below.

    `plan_at` makes the plan of a sparsity up to `highest`; it may raise UserError where there is none. Raises UserError
    for a target that no sparsity reaches, and if the model has no such file or context.
    """
    target = size.bytes
    if size.kind in GGUF_TYPES:
        bytes_of = planned_gguf(loaded.model, loaded.tokenizer, size.kind, size.context)
    else:
        assert size.kind is not None
        bytes_of = planned_folder(loaded.model, size.kind, METHODS[method].narrows_queries, size.context)
    if size.context:
        require_length(size.context, loaded.model.config)
    plans: dict[float, tuple[int, SlicePlan]] = {}  # by sparsity
    impossible: list[UserError] = []  # with these locks or shapes

    def fits(sparsity: float) -> bool:
        try:
            plan = plan_at(sparsity)
        except UserError as error:
            impossible.append(error)
            return False
        plans[sparsity] = bytes_of(plan), plan
        return plans[sparsity][0] <= target

    grid = [round(highest * step / STEPS, 6) for step in range(STEPS + 1)]
    fitting = [step for step, sparsity in enumerate(grid) if fits(sparsity)]
    if not plans:
        raise impossible[0]
    if not fitting:
        smallest = math.ceil(min(count for count, _ in plans.values()) / 1e3) / 1e3
        raise UserError(
            "the size of {target:,.3f} MB cannot be reached: the smallest that these settings reach is "
            "{smallest:,.3f} MB; choose that or more, a smaller type of weights or context, or a higher cap",
            target=target / 1e6,
            smallest=smallest,
        )
    low, high = grid[max(fitting[0] - 1, 0)], grid[fitting[0]]
    for _ in range(BISECTIONS):
        middle = round((low + high) / 2, 6)
        low, high = (low, middle) if fits(middle) else (middle, high)
    below = {sparsity: count for sparsity, (count, _) in plans.items() if count <= target}
    enough = [sparsity for sparsity, count in below.items() if count >= ENOUGH * target]
    return plans[min(enough) if enough else max(below, key=lambda sparsity: (below[sparsity], -sparsity))][1]


def planned_folder(model: PreTrainedModel, dtype: str, narrows_queries: bool, context: int) -> PlanBytes:
    """Counts, for a plan, its model.safetensors and the static cache of transformers for `context` tokens, in `dtype`.

    The file never has more bytes, and at most some fewer. The cache has fewer tokens in a sliding window, and without
    heads two values count them. `narrows_queries`: as the method's.
    """
    dense, size = [layer_sizes(block) for block in blocks(model)], DTYPES[dtype]
    dense = [replace(sizes, whole_queries=sizes.whole_queries or not narrows_queries) for sizes in dense]
    offsets = 2 * [size * sum(parameter.numel() for parameter in model.parameters())]
    tensors = {
        name: {"dtype": "BF16", "shape": [*tensor.shape], "data_offsets": offsets}
        for name, tensor in model.state_dict().items()
    }
    header = len(json.dumps({"__metadata__": {"format": "pt"}} | tensors, separators=(",", ":"))) + 16
    slots: list[Any] = StaticCache(config=model.config, max_cache_len=context).layers if context else []

    def count(plan: SlicePlan) -> int:
        values = plan.parameters.sliced_total
        for layer, sizes, slot in zip(plan.layers, dense, slots, strict=False):
            values += max(sizes.cached_values(layer.kv_heads, layer.dim), 2) * slot.max_cache_len
        return header + size * values

    return count


def planned_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gguf_type: GGUFType, context: int
) -> PlanBytes:
    """Counts, for a plan, its GGUF file and llama.cpp's cache for `context` tokens: float16, and heads of full width.

    The file never has more bytes, and at most some fewer. Raises UserError as `require_deci`.
    """
    dense = to_gguf.tensor_sizes(model, gguf_type)
    header = to_gguf.gguf_bytes(model, tokenizer, gguf_type) + DESCRIPTION - dense.all_bytes()
    head, width = to_gguf.head_name(model), head_width(model.config)
    kv_heads = [block.attention.kv_head.tolist() for block in blocks(model)]

    def count(plan: SlicePlan) -> int:
        shapes = dict(dense.shapes)  # to become those that `deci_tensors` has for the sliced model
        for index, (layer, kv_head) in enumerate(zip(plan.layers, kv_heads, strict=True)):
            groups = Counter(kv_head[head] for head in layer.heads) or {0: 1}
            keys, neurons = len(groups) * width, stored_neurons(layer.neurons)
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
        types = {name: to_gguf.stored_type(name, shape, gguf_type, head) for name, shape in shapes.items()}
        cached = 2 * sum(shape[0] for name, shape in shapes.items() if name.endswith("attn_k.weight"))  # of each token
        cache = 2 * cached * GGUFWriter.ggml_pad(context, CONTEXT_BLOCK)
        return header + to_gguf.TensorSizes(shapes, types, padding=0).all_bytes() + cache

    return count
