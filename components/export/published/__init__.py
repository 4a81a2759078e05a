"""A page without a server: everything that the slider shows, measured beforehand, in one HTML file."""
