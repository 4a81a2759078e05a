"""Instruments: where variance lies, how far slicing moves activations, and whether the estimator was right."""
