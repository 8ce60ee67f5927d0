"""Runtimes: what they can use, and how fast files run on them."""
