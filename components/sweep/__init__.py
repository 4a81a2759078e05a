"""The Sweep tab: perplexity of many models against parameters removed and against speed."""
