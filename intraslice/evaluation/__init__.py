"""What a model is worth: loss, answers, speed, and sweeps over many models."""
