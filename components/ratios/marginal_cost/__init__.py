"""*What does a parameter cost?* in *Was it right?*: every module of the slice cut further and less, by measurement."""
