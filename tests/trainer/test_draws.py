"""What a plug-in draws is nobody else's business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import TensorDataset, random_split

from helios import Plugin
from helios.core.rng import derive_seed, get_default_seed, key_generators, seed_rngs
from helios.trainer import _session
from tests.resume.runs import Gambler, draw
from tests.trainer.parts import CountingModel, ListData, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from helios import TrainingState


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
    """Plug-ins that draw in `setup`, on one rank perhaps, change no split, weight or plug-in."""
    data, model = set_up()
    found: list[Any] = []
    for draws in (0, 1, 3):
        other = Starting("other", 1)
        after, trained = set_up(Starting("first", draws), other)
        assert (after.split, after.drawn, trained.weight) == (data.split, data.drawn, model.weight)
        found.append(other.drawn)
    assert found[0] == found[1] == found[2]


def test_each_plugin_draws_numbers_of_its_own_in_setup() -> None:
    """Two plug-ins do not draw alike, and neither draws what the data module does."""
    one, other = Starting("one", 1), Starting("other", 1)
    data, _ = set_up(one, other)
    assert len({tuple(drawn) for drawn in (*one.drawn, *other.drawn, data.drawn)}) == 3


def test_a_split_is_that_of_the_seed() -> None:
    """What the data module draws is the seed's own stream: a split never changes from version to version."""
    data, _ = set_up(Starting("one", 1))
    seed_rngs()
    expected = random_split(TensorDataset(torch.arange(100.0)), [60, 40])
    assert data.split == tuple(list(part.indices) for part in expected)


class DrawingModel(CountingModel):
    """Draws wherever a model is called, and keeps what it drew, and where."""

    def __init__(self) -> None:
        super().__init__("drawing")
        self.drawn: list[tuple[str, list[float]]] = []

    def _draw(self, where: str) -> None:
        self.drawn.append((where, draw()))

    def on_training_start(self) -> None:
        self._draw("start")

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self._draw(f"epoch start {current_epoch}")

    def on_training_batch_start(self, state: TrainingState) -> None:
        self._draw(f"batch start {state.global_iteration}")

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        del batch
        self._draw(f"step {state.global_iteration}")

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        del should_log
        self._draw(f"batch end {state.global_iteration}")

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self._draw(f"epoch end {current_epoch}")

    def on_training_end(self) -> None:
        self._draw("end")

    def on_validation_start(self, validation_cycle: int) -> None:
        self._draw(f"validation start {validation_cycle}")

    def on_validation_batch_start(self, step: int) -> None:
        self._draw(f"validation batch start {step}")

    def valid_step(self, batch: torch.Tensor, step: int) -> None:
        del batch
        self._draw(f"validation {step}")

    def on_validation_batch_end(self, step: int) -> None:
        self._draw(f"validation batch end {step}")

    def on_validation_end(self, validation_cycle: int) -> None:
        self._draw(f"validation end {validation_cycle}")

    def have_metrics_improved(self) -> bool:
        self._draw("improved")
        return True

    def on_testing_start(self) -> None:
        self._draw("testing start")

    def on_testing_batch_start(self, step: int) -> None:
        self._draw(f"testing batch start {step}")

    def test_step(self, batch: torch.Tensor, step: int) -> None:
        del batch
        self._draw(f"testing {step}")

    def on_testing_batch_end(self, step: int) -> None:
        self._draw(f"testing batch end {step}")

    def on_testing_end(self) -> None:
        self._draw("testing end")


class AskedModel(DrawingModel):
    """Draws in `should_training_stop` as well."""

    def should_training_stop(self) -> bool:
        self._draw("asked")
        return False


class QuietlyAskedModel(AskedModel):
    """Has no hook between its step and the question."""

    on_training_batch_end = CountingModel.on_training_batch_end


def drawn_by(model: DrawingModel, *plugins: Plugin, **options: Any) -> list[tuple[str, list[float]]]:
    """Return what a model draws in a training and a test with these plug-ins."""
    trainer = make_trainer(**{"valid_frequency": 1, "early_stop_cycles": 5, **options})
    for plugin in plugins:
        trainer.register_plugin(plugin)
    data = ListData()
    assert trainer.fit(model, data)
    trainer.test(model, data)
    return model.drawn


@pytest.mark.parametrize("kind", [DrawingModel, AskedModel, QuietlyAskedModel])
@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_what_plugins_draw_never_reaches_the_model(kind: type[DrawingModel], unit: str) -> None:
    """Wherever a model draws, in training, validation and testing, it draws the same beside any plug-in."""
    options = {"train_unit": unit, "total_steps": 2 if unit == "epoch" else 4}
    alone = drawn_by(kind(), **options)
    assert len({name for name, _ in alone}) > 20
    assert drawn_by(kind(), SimplePlugin(), **options) == alone
    assert drawn_by(kind(), Gambler(), **options) == alone


@pytest.mark.parametrize("plugins", [[], [Gambler]])
def test_a_batch_is_one_stream(plugins: list[type[Gambler]]) -> None:
    """The model's hooks of a batch and its step draw on in one stream, whose seed no version changes."""
    drawn = dict(drawn_by(DrawingModel(), *(make() for make in plugins)))
    for step in range(1, 7):
        key_generators(derive_seed(get_default_seed(), "step", 0, step - 1))
        for where in (f"batch start {step}", f"step {step}", f"batch end {step}"):
            assert drawn[where] == draw(), where


class DrawingPlugin(SimplePlugin):
    """Draws in the hooks of a batch, an epoch and a validation, and keeps what it drew."""

    def __init__(self, plug_id: str) -> None:
        super().__init__(plug_id)
        self.drawn: list[list[float]] = []

    def on_training_epoch_start(self, current_epoch: int) -> None:
        del current_epoch
        self.drawn.append(draw())

    def on_training_batch_start(self, state: TrainingState) -> None:
        del state
        self.drawn.append(draw())

    def on_training_batch_end(self, state: TrainingState) -> None:
        del state
        self.drawn.append(draw())

    def on_validation_start(self, validation_cycle: int) -> None:
        del validation_cycle
        self.drawn.append(draw())

    def on_validation_end(self, validation_cycle: int) -> None:
        del validation_cycle
        self.drawn.append(draw())


def test_each_plugin_draws_numbers_of_its_own() -> None:
    """What a plug-in draws depends on no other, and no two draws are alike, of plug-ins or the model."""
    one, other, alone = DrawingPlugin("one"), DrawingPlugin("other"), DrawingPlugin("other")
    by_model = [drawn for _, drawn in drawn_by(DrawingModel(), one, other)]
    drawn_by(DrawingModel(), alone)
    assert other.drawn == alone.drawn
    everything = {tuple(drawn) for drawn in (*by_model, *one.drawn, *other.drawn)}
    assert len(everything) == len(by_model) + len(one.drawn) + len(other.drawn)


class Silent(Plugin):
    """Has hooks with every batch, and draws nothing in them."""

    draws_nothing = True

    def setup(self) -> None:
        """There is nothing to make."""

    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        del state
        return batch

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Do nothing."""

    def on_training_batch_end(self, state: TrainingState) -> None:
        """Do nothing."""


class Wary(Silent):
    """Does not say by itself that it draws nothing."""


def test_for_whoever_draws_nothing_nothing_is_keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks of a plug-in that says that it draws nothing cost no key; others cost one each."""
    keyed: list[int] = []
    monkeypatch.setattr(_session, "make_seed_fn", lambda _: keyed.append)
    counts = []
    for plugins in ([], [Silent("silent")], [Wary("wary")]):
        keyed.clear()
        set_up(*plugins)
        counts.append(len(keyed))
    none, silent, wary = counts
    steps = (wary - silent) / 3
    assert silent == none + 1, "its setup, where nothing is known of it"
    assert steps == int(steps) > 1
