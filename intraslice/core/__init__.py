"""What everything else stands on: configs, errors, progress, cache, linear algebra. Knows no model."""
