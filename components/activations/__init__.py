"""The Activations tab: how far intra-module and cross-module slicing shift the activations."""
