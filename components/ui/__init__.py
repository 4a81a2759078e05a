"""A toolkit for pages with charts: it knows no tab."""
