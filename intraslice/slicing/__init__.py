"""Slicing (paper §3) of one attention, of one MLP, and of all layers of a model."""
