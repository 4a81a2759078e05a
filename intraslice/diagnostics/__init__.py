"""Diagnostics: explained variance, activation shift, marginal costs, and checks of the estimators."""
