"""The names of `helios.model`, as code written for helios-ml 1.x imports them."""

from helios.model import MODEL_REGISTRY, create_model

__all__ = ["MODEL_REGISTRY", "create_model"]
