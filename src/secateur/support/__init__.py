"""Helpers that know nothing of networks: files, settings, progress, subprocesses."""
