"""Finds, downloads and reads the weights of pretrained models, and estimates whether they fit into memory."""
