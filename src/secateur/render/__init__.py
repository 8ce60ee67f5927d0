"""Reports on the terminal and as pages."""
