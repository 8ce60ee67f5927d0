"""Calibration and evaluation images, from files, loaders or made without data."""
