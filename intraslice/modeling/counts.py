"""Numbers of parameters and key/value cache bytes of a model, counted on its tensors."""

from transformers import PreTrainedModel


def parameters_of(model: PreTrainedModel, name: str) -> dict[str, int]:
    """`{name}_total` and `{name}_decoder` (decoder layers only), counted on the tensors. Tied tensors count once."""
    total = sum(p.numel() for p in model.parameters())
    return {f"{name}_total": total, f"{name}_decoder": decoder_parameters(model)}


def kv_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes that one token adds to the key/value cache, over all layers."""
    attentions = [layer.self_attn for layer in model.model.layers]
    return sum(a.kv_heads * (a.dim + a.value_dim) for a in attentions) * model.dtype.itemsize


def decoder_parameters(model: PreTrainedModel) -> int:
    """Parameters of the decoder layers only, to which sparsity refers."""
    return sum(p.numel() for p in model.model.layers.parameters())
