"""ShortGPT (arXiv 2403.03853): whole layers are removed, those that change their input least.

A layer's influence is `1 - cos(layer input, layer output)`, mean over tokens. The number of parameters is that of all
methods: where it asks for a part of a layer, the next one is narrowed as by MoDeGPT. The cap does not limit its ratios.
"""

from collections.abc import Sequence

from intraslice.methods.modegpt import MoDeGPT
from intraslice.methods.registry import METHODS


class ShortGPT(MoDeGPT):
    """ShortGPT (arXiv 2403.03853); see the docstring of this file."""

    name = "shortgpt"
    label = "ShortGPT"
    explanation = "ShortGPT: removes whole layers, those that change their input least"
    uses_cap = False

    def layer_ratios(self, influence: Sequence[float], mean: float) -> list[float]:
        ratios, left = [0.0] * len(influence), mean * len(influence)
        for layer in sorted(range(len(influence)), key=influence.__getitem__):
            ratios[layer] = min(max(left, 0.0), 1.0)
            left -= 1
        return ratios

    def highest_mean(self, influence: Sequence[float], cap: float) -> float:
        return 1.0


METHODS.register(ShortGPT())
