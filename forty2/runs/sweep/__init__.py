"""Sweeps: a grid of configurations, each trained with every seed, and a winner that is a claim."""
