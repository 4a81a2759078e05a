"""Search for better ratios by measurement: module levels, their costs, an evolutionary search, and its result."""
