"""The model: everything that trains, and what one step of training does."""

from helios.model.model import MODEL_REGISTRY, Model, create_model

__all__ = ["MODEL_REGISTRY", "Model", "create_model"]
