"""A network as data: its operations, layers and values."""
