"""The Export tab: the sliced model, its plan, a report, and the commands that reproduce them."""
