"""The names of `helios.scheduler`, as code written for helios-ml 1.x imports them."""

from helios.scheduler import SCHEDULER_REGISTRY, CosineAnnealingRestartLR, MultiStepRestartLR, create_scheduler

__all__ = ["SCHEDULER_REGISTRY", "CosineAnnealingRestartLR", "MultiStepRestartLR", "create_scheduler"]
