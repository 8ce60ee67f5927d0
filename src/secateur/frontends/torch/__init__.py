"""Networks from PyTorch: modules and exported programs."""
