"""The Activations tab: how far either way of slicing moves the activations."""
