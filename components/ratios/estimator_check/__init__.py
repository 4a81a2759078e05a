"""*Was it right?* on the Ratios tab: every module sliced alone, against what was foretold of it."""
