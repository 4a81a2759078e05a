"""The Estimator tab: how well importances predict damage, better ratios by search, convergence with calibration."""
