"""Tokens to statistics: second moments and mask gradients of the dense model."""
