"""Translation and formats of numbers and dates."""
