"""How a network is trained by several ranks, and the gradients that a checkpoint must keep."""

from helios.parallel.placement import place_network
from helios.parallel.strategies import DDPStrategy, FSDPStrategy, SingleProcessStrategy
from helios.parallel.strategy import Strategy

__all__ = ["DDPStrategy", "FSDPStrategy", "SingleProcessStrategy", "Strategy", "place_network"]
