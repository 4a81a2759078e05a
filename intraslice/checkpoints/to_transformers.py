"""Converts a sliced model to a plain transformers model, if all its layers have the same shape.

transformers allows other head counts and MLP widths if they are the same in all layers. It does not allow narrower
heads (its rotary frequencies and softmax scale follow from the head width) nor groups of unequal size.
"""

from __future__ import annotations

import copy

from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.modeling.families import blocks, family_of, head_width, write_layer_
from intraslice.modeling.hidden_states import require_model
from intraslice.modeling.offload import resident
from intraslice.modeling.residual import CrossModuleLayer


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """A stock transformers model that computes the same function; its tensors are copies.

    Raises UserError, naming the layer, if layers have different shapes or heads are narrower.
    """
    require_model(model)
    if isinstance(model.model.layers[0], CrossModuleLayer):
        raise UserError(
            "a cross-module model has shortcut matrices, which transformers' classes do not support; "
            "save the IntraSlice checkpoint instead"
        )
    layers, config = blocks(model), copy.deepcopy(model.config)
    first, dim, family = layers[0], head_width(config), family_of(config)
    for index, block in enumerate(layers):
        attention, unsupported = block.attention, None
        sizes = (attention.heads, attention.kv_heads, block.mlp.neurons)
        if (attention.dim, attention.value_dim) != (dim, dim):
            unsupported = f"heads of {attention.value_dim} channels instead of {dim}"
        elif not attention.even_groups:
            unsupported = "groups of unequal size"
        if unsupported is not None:
            raise UserError(
                f"layer {index} has {unsupported}, which transformers does not support; save the IntraSlice checkpoint "
                "instead, or slice only the MLPs"
            )
        if sizes != (first.attention.heads, first.attention.kv_heads, first.mlp.neurons):
            raise UserError(
                f"layer {index} has a different shape from layer 0, and transformers' model classes require the same "
                "shape in all layers; use the uniform estimator, or save the IntraSlice checkpoint instead"
            )
    config.head_dim = dim
    config.num_attention_heads, config.num_key_value_heads = first.attention.heads, first.attention.kv_heads
    config.intermediate_size = first.mlp.neurons
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    for layer, block in zip(plain.model.layers, layers, strict=True):
        with resident(block.attention), resident(block.mlp):
            write_layer_(layer, block, family)
    tensors = model.state_dict().items()
    outside = {name: tensor for name, tensor in tensors if ".self_attn." not in name and ".mlp." not in name}
    plain.load_state_dict(outside, strict=False)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval().requires_grad_(False)
