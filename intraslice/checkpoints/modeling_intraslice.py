"""Copied into every saved folder, for transformers' `trust_remote_code=True`; it needs the library installed.

After `import intraslice` the Auto classes know such folders, and nobody reads this file.
"""

from intraslice.checkpoints.auto_class import IntraSliceConfig, IntraSliceForCausalLM

__all__ = ["IntraSliceConfig", "IntraSliceForCausalLM"]
