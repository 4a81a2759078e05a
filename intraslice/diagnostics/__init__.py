"""Diagnostics: explained variance, activation shift, and checks of the estimators."""
