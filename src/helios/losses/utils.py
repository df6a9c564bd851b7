"""The names of `helios.losses`, as code written for helios-ml 1.x imports them."""

from helios.losses import LOSS_REGISTRY, WeightedLoss, create_loss, create_loss_function

__all__ = ["LOSS_REGISTRY", "WeightedLoss", "create_loss", "create_loss_function"]
