"""Recipes, allocations and the walk that fits each layer."""
