"""How a run gets its processes: in this one, spawned, or started by torchrun."""
