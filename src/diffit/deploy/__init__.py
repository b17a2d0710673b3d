"""Ways to use a model elsewhere: in diffusers."""
