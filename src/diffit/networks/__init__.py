"""Architectures: F(x, time, label, image), raw predictions that know nothing of diffusion."""
