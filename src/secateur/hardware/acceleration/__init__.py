"""`secateur.accelerate`: a module whose linear layers run kernels that leave zeros out."""
