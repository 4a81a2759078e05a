"""*Marginal cost per parameter* on the Ratios tab: measured by pruning each module more and less."""
