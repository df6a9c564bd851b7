"""What a plug-in draws is nobody else's business."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import TensorDataset, random_split

from helios import Plugin
from helios.core.rng import seed_rngs
from tests.resume.runs import draw
from tests.trainer.parts import CountingModel, ListData, make_trainer


class Starting(Plugin):
    """Draws in `setup` what it is told to, as a logger that makes up a run's id on rank 0 alone."""

    def __init__(self, plug_id: str, draws: int) -> None:
        super().__init__(plug_id)
        self.draws = draws
        self.drawn: list[list[float]] = []

    def setup(self) -> None:
        self.drawn = [draw() for _ in range(self.draws)]


class Splitting(ListData):
    """Splits data at random."""

    def setup(self) -> None:
        first, second = random_split(TensorDataset(torch.arange(100.0)), [60, 40])
        self.split = list(first.indices), list(second.indices)
        self.drawn = draw()


def set_up(*plugins: Plugin) -> tuple[Splitting, CountingModel]:
    """Train one epoch with these plug-ins, and return the data module and the model."""
    trainer = make_trainer(total_steps=1)
    for plugin in plugins:
        trainer.register_plugin(plugin)
    data, model = Splitting(), CountingModel()
    trainer.fit(model, data)
    return data, model


def test_what_a_plugin_draws_in_setup_splits_no_data() -> None:
    """SPEC F2: plug-ins that draw in `setup`, on one rank perhaps, change no split, weight or plug-in."""
    data, model = set_up()
    found: list[Any] = []
    for draws in (0, 1, 3):
        other = Starting("other", 1)
        after, trained = set_up(Starting("first", draws), other)
        assert (after.split, after.drawn, trained.weight) == (data.split, data.drawn, model.weight)
        found.append(other.drawn)
    assert found[0] == found[1] == found[2]


def test_each_plugin_draws_numbers_of_its_own_in_setup() -> None:
    """SPEC F2: two plug-ins do not draw alike, and neither draws what the data module does."""
    one, other = Starting("one", 1), Starting("other", 1)
    data, _ = set_up(one, other)
    assert len({tuple(drawn) for drawn in (*one.drawn, *other.drawn, data.drawn)}) == 3


def test_a_split_is_that_of_the_seed() -> None:
    """SPEC F2: what the data module draws is the seed's own stream: a split never changes from version to version."""
    data, _ = set_up(Starting("one", 1))
    seed_rngs()
    expected = random_split(TensorDataset(torch.arange(100.0)), [60, 40])
    assert data.split == tuple(list(part.indices) for part in expected)
