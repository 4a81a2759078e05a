"""Evaluates models: loss, generated text, speed, lm-eval tasks, and sweeps over many models."""
