"""Tensors in, tensors out: statistics, the layer problem, patterns and methods."""
