"""The paper's section 3: one attention, one MLP, and the drivers over all layers."""
