"""Slices a model one layer at a time: weights, moments and the sliced layers are on disk except for one layer's."""
