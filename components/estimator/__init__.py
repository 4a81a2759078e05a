"""*Estimator check* on the Ratios tab: measured damage of every module sliced alone, against the predicted damage."""
