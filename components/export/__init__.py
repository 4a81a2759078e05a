"""The Export tab: the sliced model, its plan, a report, and the words that make them again."""
