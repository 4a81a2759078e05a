"""An ordinary transformers checkpoint of a sliced model, where its plan makes every layer alike.

transformers can hold another head count and another MLP width, alike in all layers; it cannot hold narrower heads (its
rotary frequencies and softmax scale follow the head width) nor groups of unequal size.
"""

from __future__ import annotations

import copy

from transformers import AutoModelForCausalLM, PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.modeling.crossmodule_layers import CrossModuleLayer
from intraslice.modeling.families import blocks, head_width, write_layer_


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """The same function as an unmodified transformers model, ready for `save_pretrained`; its tensors are copies.

    Raises UserError, naming the layer, when the layers are not alike or heads were narrowed.
    """
    if isinstance(model.model.layers[0], CrossModuleLayer):
        raise UserError("a cross-module model has shortcut matrices, which transformers cannot hold; save it as it is")
    layers = blocks(model)
    config = copy.deepcopy(model.config)
    first = layers[0]
    dim = head_width(config)
    for index, block in enumerate(layers):
        attention = block.attention
        sizes = (attention.heads, attention.kv_heads, block.mlp.neurons)
        if (attention.dim, attention.value_dim) != (dim, dim) or not attention.even_groups:
            raise UserError(
                f"layer {index} has heads of {attention.dim} channels or unequal groups, which transformers "
                "cannot hold; save the IntraSlice checkpoint instead, or slice the MLPs alone"
            )
        if sizes != (first.attention.heads, first.attention.kv_heads, first.mlp.neurons):
            raise UserError(
                f"layer {index} differs from layer 0, and transformers' own classes want layers alike; "
                "take the uniform estimator, or save the IntraSlice checkpoint instead"
            )
    config.head_dim = dim
    config.num_attention_heads, config.num_key_value_heads = first.attention.heads, first.attention.kv_heads
    config.intermediate_size = first.mlp.neurons
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    for layer, block in zip(plain.model.layers, layers, strict=True):
        write_layer_(layer, block)
    replaced = {f"model.layers.{index}.{part}" for index in range(len(layers)) for part in ("self_attn", "mlp")}
    outside = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(name.startswith(f"{prefix}.") for prefix in replaced)
    }
    plain.load_state_dict(outside, strict=False)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval().requires_grad_(False)
