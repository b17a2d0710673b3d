"""Robust predictions and faithful explanations of classifiers, by denoised smoothing.

Images are float tensors (B, C, H, W) in [-1, 1], and so are noise and radii measured, unless a name
says otherwise: see `diffit.explain.units`.
"""
