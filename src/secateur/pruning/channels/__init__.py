"""Removing whole channels: what can leave, what it costs, how much is lost, and the walk."""
