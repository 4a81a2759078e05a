"""Slice Llama and Phi models by PCA inside their modules, so that every transform fuses into the weights."""

from __future__ import annotations

__version__ = "0.1.0"
