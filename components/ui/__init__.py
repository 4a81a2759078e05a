"""A toolkit for pages with charts. Imports no tab."""
