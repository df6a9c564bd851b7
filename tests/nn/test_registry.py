"""Networks by name."""

from __future__ import annotations

import pytest
from torch import nn

from helios.errors import UnknownNameError
from helios.losses import LOSS_REGISTRY
from helios.nn import NETWORK_REGISTRY, create_network


def test_the_modules_of_torch_are_registered() -> None:
    """Layers, containers and networks of torch.nn are registered by name; base classes and losses are not."""
    names = set(NETWORK_REGISTRY.keys())
    assert {"Linear", "Conv2d", "Sequential", "LSTM", "Transformer", "ReLU", "Identity", "Dropout"} <= names
    assert not {"Module", "RNNBase", "RNNCellBase", "Container", "DataParallel", "NLLLoss2d"} & names
    assert not set(LOSS_REGISTRY.keys()) & names
    for name, made in NETWORK_REGISTRY:
        assert made is getattr(nn, name)
        assert isinstance(made, type)
        assert issubclass(made, nn.Module)


def test_create_passes_arguments_on() -> None:
    """`create_network` makes an instance of the named class with the given arguments."""
    made = create_network("Linear", 3, out_features=2, bias=False)
    assert type(made) is nn.Linear
    assert made.weight.shape == (2, 3)
    assert made.bias is None


def test_an_unknown_network_is_refused() -> None:
    """An unknown name is an error that suggests the right one."""
    with pytest.raises(UnknownNameError, match="'Linaer' is not a registered network: did you mean 'Linear'"):
        create_network("Linaer")
