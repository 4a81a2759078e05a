"""Long work: whose step is next, and what each visitor has running."""
