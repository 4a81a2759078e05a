"""Base layer of the library: configs, errors, progress, cache, linear algebra. Imports no model code."""
