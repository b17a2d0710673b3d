"""The mathematics of diffusion in one coordinate, sigma; it never imports a network."""
