"""Restoration: degradation operators, and methods that invert them with any denoiser."""
