"""Search spaces from files, and their definitions."""
