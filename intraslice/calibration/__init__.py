"""Calibration: second moments and mask gradients of the dense model over tokens."""
