"""How a network is trained by several ranks, and the gradients that a checkpoint must keep."""
