"""A server of a run's models: mlx-lm's, with the base and every phase at once, and a page to compare them."""
