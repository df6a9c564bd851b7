"""Averages of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helios.errors import ConfigurationError
from helios.nn.swa_utils import EMA


def test_the_average_follows_the_formula() -> None:
    """After each update the average is `decay * average + (1 - decay) * parameters`, buffers too; the first copies."""
    network = nn.BatchNorm1d(2)
    average = EMA(network, decay=0.75)
    expected_weight, expected_mean = torch.zeros(2), torch.zeros(2)
    for step, value in enumerate((2.0, 4.0, -1.0)):
        with torch.no_grad():
            network.weight.fill_(value)
            network.running_mean.fill_(value + 1)  # type: ignore[union-attr]  # this one has statistics
        average.update_parameters(network)
        share = 0.75 if step else 0.0
        expected_weight = share * expected_weight + (1 - share) * value
        expected_mean = share * expected_mean + (1 - share) * (value + 1)
    assert torch.allclose(average.module.get_parameter("weight"), expected_weight)
    assert torch.allclose(average.module.get_buffer("running_mean"), expected_mean)


def test_buffers_are_copied_if_asked() -> None:
    """With `use_buffers=False` the buffers are those of the network."""
    network = nn.BatchNorm1d(2)
    average = EMA(network, use_buffers=False)
    for value in (2.0, 4.0):
        network.running_mean.fill_(value)  # type: ignore[union-attr]  # this one has statistics
        average.update_parameters(network)
    assert torch.equal(average.module.get_buffer("running_mean"), torch.full((2,), 4.0))


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    """The error names the value and the range."""
    with pytest.raises(ConfigurationError, match=rf"decay is {decay}: pass a number from 0 to 1"):
        EMA(nn.Linear(1, 1), decay=decay)
