"""Every way to slice, under one roof and at equal removed parameters."""
