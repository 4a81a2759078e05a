"""*Ratio search* on the Ratios tab."""
