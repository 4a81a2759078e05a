"""Training of a sliced model towards the dense one, after any method."""
