"""Samplers whose draws are reproducible, and whose state is saved."""
