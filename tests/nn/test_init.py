"""Initial weights."""

from __future__ import annotations

import torch
from torch import nn

from helios.nn import default_init_weights


def test_layers_are_initialized_by_their_kind() -> None:
    """Weights of linear and convolution layers are He's times the scale, those of normalization 1, biases as given."""
    linear, norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
    networks = [nn.Sequential(linear, norm, nn.Sequential(nn.Conv2d(1, 2, 3, bias=False))), nn.Linear(1, 1)]
    torch.manual_seed(1)
    default_init_weights(networks, scale=0.1, bias_fill=0.5, mode="fan_out")
    torch.manual_seed(1)
    expected = nn.init.kaiming_normal_(torch.empty(4, 3), mode="fan_out") * 0.1
    assert torch.equal(linear.weight, expected)
    assert linear.bias.tolist() == [0.5] * 4
    assert norm.weight.tolist() == [1.0] * 4
    assert norm.bias.tolist() == [0.5] * 4


def test_a_single_network_is_taken_as_it_is() -> None:
    """A network need not be put into a list, and layers of other kinds are left alone."""
    embedding, linear = nn.Embedding(2, 2), nn.Linear(2, 2)
    before = embedding.weight.clone()
    default_init_weights(nn.Sequential(embedding, linear))
    assert torch.equal(embedding.weight, before)
    assert linear.bias.tolist() == [0.0, 0.0]
