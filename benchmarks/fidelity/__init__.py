"""Predictions against what others measured: kernels, and whole systems."""
