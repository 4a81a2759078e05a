"""Copied into every checkpoint as `modeling_intraslice.py`, so that transformers' Auto classes can open it.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` runs it; it needs this library installed.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import PreTrainedConfig, PreTrainedModel

CONFIG = {
    "model_type": "intraslice",
    "auto_map": {
        "AutoConfig": "modeling_intraslice.IntraSliceConfig",
        "AutoModelForCausalLM": "modeling_intraslice.IntraSliceForCausalLM",
    },
}


class IntraSliceConfig(PreTrainedConfig):
    """Says only that the folder is a sliced checkpoint; sizes are in its intraslice.json."""

    model_type = "intraslice"


class IntraSliceForCausalLM(PreTrainedModel):
    """Opens a checkpoint as the transformers model it is, with narrower layers."""

    config_class = IntraSliceConfig

    @classmethod
    def from_pretrained(cls, folder: str, *_, dtype=None, torch_dtype=None, device_map=None, **__) -> PreTrainedModel:
        """The sliced model in `folder`, a local path or a Hub id."""
        from intraslice.checkpoints import load

        path = folder if Path(folder).is_dir() else snapshot_download(folder)
        kind = dtype or torch_dtype
        device = device_map if isinstance(device_map, str) and device_map != "auto" else "cpu"
        return load(path, device, None if kind == "auto" else kind)[0]
