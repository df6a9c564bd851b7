"""Checkpoints: what is captured, and how files are kept."""
