"""Copied into every saved folder, for transformers' `trust_remote_code=True`. Needs the library installed.

After `import intraslice` the Auto classes know the model type, and this file is not used.
"""

from intraslice.checkpoints.auto_class import IntraSliceConfig, IntraSliceForCausalLM

__all__ = ["IntraSliceConfig", "IntraSliceForCausalLM"]
