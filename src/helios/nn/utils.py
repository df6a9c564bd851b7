"""The names of `helios.nn`, as code written for helios-ml 1.x imports them."""

from helios.nn import NETWORK_REGISTRY, create_network, default_init_weights

__all__ = ["NETWORK_REGISTRY", "create_network", "default_init_weights"]
