"""The names of `helios.optim`, as code written for helios-ml 1.x imports them."""

from helios.optim import OPTIMIZER_REGISTRY, create_optimizer

__all__ = ["OPTIMIZER_REGISTRY", "create_optimizer"]
