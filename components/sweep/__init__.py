"""The Sweep tab: perplexity of many models against what was removed of them."""
