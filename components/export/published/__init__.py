"""The static page: one HTML file without a server, with all values of the slider measured in advance."""
