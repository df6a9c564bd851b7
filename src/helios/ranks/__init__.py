"""Processes that train together: the process group, stores, what hosts agree on, the monitor, failures."""
