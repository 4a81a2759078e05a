"""Planning: from importances and a sparsity to the ratios and sizes of every layer. Imports no models."""
