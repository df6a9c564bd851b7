"""How training is ended from within: by a plug-in, by the model, by a lack of improvement."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from helios.checkpoint.archive import load_archive
from helios.core.rng import make_rng_state_saver
from helios.core.state import TrainingState
from helios.errors import TrainingError
from helios.plugins.table import PluginTable
from helios.ranks.host_group import HostGroup
from helios.trainer import find_last_checkpoint
from helios.trainer._stopping import StopVote
from tests.ranks.host_groups import join_host_group
from tests.ranks.ranks import run_ranks
from tests.trainer.parts import CountingModel, ListData, SimplePlugin, make_trainer
from tests.trainer.trace import TracingModel, TracingPlugin

if TYPE_CHECKING:
    from pathlib import Path

    from helios import Model


class StopPlugin(TracingPlugin):
    """Stops after a batch."""

    def __init__(self, at: int, trace: list[str]) -> None:
        super().__init__("a", trace)
        self.unique_overrides.should_training_stop = True
        self.at = at
        self.done = 0

    def on_training_batch_end(self, state: TrainingState) -> None:
        super().on_training_batch_end(state)
        self.done = state.global_iteration

    def should_training_stop(self) -> bool:
        return self.done >= self.at


class StopModel(TracingModel):
    """Stops after a batch."""

    def __init__(self, at: int, trace: list[str]) -> None:
        super().__init__(trace)
        self.at = at
        self.done = 0

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        self.done = state.global_iteration

    def should_training_stop(self) -> bool:
        return self.done >= self.at


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
@pytest.mark.parametrize("who", ["plugin", "model"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_plugin_or_the_model_can_stop_training(tmp_path: Path, unit: str, who: str, at: int) -> None:
    """Training ends after that batch: end hooks run, a checkpoint is there, `fit` is true, and true again."""

    def run() -> list[str]:
        trace: list[str] = []
        trainer = make_trainer(tmp_path, train_unit=unit, total_steps=100)
        trainer.register_plugin(StopPlugin(at, trace) if who == "plugin" else TracingPlugin("a", trace))
        assert trainer.fit(StopModel(at, trace) if who == "model" else TracingModel(trace), ListData())
        return trace

    trace = run()
    steps = [line for line in trace if line.startswith("model.train_step")]
    assert len(steps) == at
    assert trace[-6:] == [
        f"model.on_training_batch_end {at}",
        f"a.on_training_epoch_end {(at + 2) // 3}",
        f"model.on_training_epoch_end {(at + 2) // 3}",
        "a.on_training_end",
        "model.on_training_end",
        "a.on_fit_end False",
    ]
    path = find_last_checkpoint(tmp_path / "tracing")
    assert path is not None
    saved = load_archive(path)["training"]
    assert saved["state"]["global_iteration"] == at
    assert saved["stopped"]
    again = run()
    assert not any("train_step" in line for line in again)
    assert again[-2:] == ["model.on_training_end", "a.on_fit_end False"]


def test_the_checkpoint_of_a_stopped_run_is_whole(tmp_path: Path) -> None:
    """The final checkpoint holds the weights of exactly the batches that were trained."""

    class Stopping(CountingModel):
        def should_training_stop(self) -> bool:
            return len(self.seen) == 4

    stopped, cut = Stopping(), CountingModel("cut")
    assert make_trainer(tmp_path, total_steps=9).fit(stopped, ListData())
    assert make_trainer(tmp_path, train_unit="iteration", total_steps=4).fit(cut, ListData())
    assert stopped.weight == cut.weight
    path = find_last_checkpoint(tmp_path / "counting")
    assert path is not None
    assert torch.equal(load_archive(path)["model"]["state"]["net"]["weight"], stopped.net.weight)


class Scored(CountingModel):
    """Improves for a number of validations, and then no more."""

    def __init__(self, improving: int) -> None:
        super().__init__()
        self.improving = improving
        self.cycles = 0

    def on_validation_end(self, validation_cycle: int) -> None:
        self.cycles = validation_cycle + 1

    def have_metrics_improved(self) -> bool:
        return self.cycles <= self.improving or self.cycles == 5


@pytest.mark.parametrize(
    ("cycles", "improving", "validations"), [(1, 0, 1), (1, 2, 3), (2, 2, 4), (3, 3, 8), (2, 99, 10)]
)
def test_early_stopping(tmp_path: Path, cycles: int, improving: int, validations: int) -> None:
    """Training stops after so many validations in a row without improvement; one in between starts over."""
    for unit, batches in (("epoch", 3), ("iteration", 1)):
        model = Scored(improving)
        options = {"total_steps": 10, "valid_frequency": 1, "early_stop_cycles": cycles, "train_unit": unit}
        assert make_trainer(tmp_path / unit, **options).fit(model, ListData())
        assert (model.cycles, len(model.seen)) == (validations, validations * batches)
        again = Scored(improving)
        assert make_trainer(tmp_path / unit, **options).fit(again, ListData())
        assert len(again.seen) == len(model.seen), "a run that early stopping has ended is at its end"


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_an_infinite_run_ends_when_it_is_stopped(unit: str) -> None:
    """With `total_steps=inf`, training continues until the model stops it; the progress bar has no total."""

    class Stopping(CountingModel):
        def should_training_stop(self) -> bool:
            return len(self.seen) == 50

    model = Stopping()
    trainer = make_trainer(total_steps=math.inf, train_unit=unit, enable_progress_bar=True)
    assert trainer.fit(model, ListData())
    assert len(model.seen) == 50


class Asked(SimplePlugin):
    """Wants to stop or not, as it is told; an event later it may want otherwise."""

    def __init__(self, wants: bool) -> None:
        super().__init__("asked")
        self.wants, self.calls, self.has_news = wants, 0, True

    def should_training_stop(self) -> bool:
        self.calls += 1
        return self.wants

    def has_stop_news(self) -> bool:
        return self.has_news


class AskedAgain(Asked):
    """Gives training up for now: who resumes it asks anew."""

    stop_is_final = False


class StopModelWhen(CountingModel):
    """Wants to stop or not, as it is told."""

    def __init__(self, wants: bool) -> None:
        super().__init__()
        self.wants = wants

    def should_training_stop(self) -> bool:
        return self.wants


def make_vote(model: Model, plugins: PluginTable, host_group: HostGroup) -> StopVote:
    return StopVote(model, plugins, host_group, make_rng_state_saver())


def vote(rank: int, wants: list[tuple[bool, bool]], is_for_good: bool) -> tuple[bool, bool]:
    """Return what two ranks agree on, of which each knows what its model and its plug-in want."""
    by_model, by_plugin = wants[rank]
    plugins = PluginTable()
    plugins["asked"] = Asked(by_plugin) if is_for_good else AskedAgain(by_plugin)
    return make_vote(StopModelWhen(by_model), plugins, join_host_group()).ask(TrainingState(global_iteration=7))


NOBODY, MODEL, PLUGIN = (False, False), (True, False), (False, True)


@pytest.mark.parametrize(
    ("wants", "is_for_good", "outcome"),
    [
        ([NOBODY, NOBODY], True, (False, False)),
        ([MODEL, NOBODY], False, (True, False)),
        ([NOBODY, MODEL], False, (True, False)),
        ([NOBODY, PLUGIN], True, (True, False)),
        ([PLUGIN, NOBODY], False, (False, True)),
        ([NOBODY, PLUGIN], False, (False, True)),
        ([MODEL, PLUGIN], False, (True, True)),
        ([(True, True), NOBODY], False, (True, True)),
    ],
)
def test_what_one_rank_wants_all_do(
    tmp_path: Path, wants: list[tuple[bool, bool]], outcome: tuple[bool, bool], *, is_for_good: bool
) -> None:
    """Whoever asks for a stop on any rank, all ranks have the same answer, and how final it is."""
    assert run_ranks(tmp_path, 2, vote, wants, is_for_good) == [outcome, outcome]


def meet(rank: int, places: list[dict[str, int]]) -> str:
    """Return what is said about the places at which two ranks vote."""
    try:
        make_vote(CountingModel(), PluginTable(), join_host_group()).ask(TrainingState(**places[rank]))
    except TrainingError as error:
        return str(error)
    return ""


def test_a_vote_at_different_places_is_an_error(tmp_path: Path) -> None:
    """Ranks that ask after different batches, or one before and one after an epoch's end, are told so."""
    middle, end = {"global_iteration": 4, "dataset_iter": 4}, {"global_iteration": 4, "dataset_iter": 0}
    later = {"global_iteration": 6, "dataset_iter": 6}
    assert run_ranks(tmp_path, 2, meet, [middle, middle]) == ["", ""]
    text = "one rank has trained 4 batches and another 6: all must be given equally many"
    assert all(told.startswith(text) for told in run_ranks(tmp_path, 2, meet, [middle, later]))
    assert all(told.startswith("one rank has trained 4") for told in run_ranks(tmp_path, 2, meet, [middle, end]))


def test_only_where_somebody_may_have_changed_his_mind_there_is_a_vote() -> None:
    """Who cannot stop is not asked; a plug-in that knows when its answer changes is asked only then."""
    silent = make_vote(CountingModel(), PluginTable(), HostGroup())
    assert not silent.may_stop
    assert not silent.has_news()
    plugins, plugin = PluginTable(), Asked(wants=False)
    plugins["asked"] = plugin
    for has_news in (True, False):
        plugin.has_news = has_news
        assert make_vote(CountingModel(), plugins, HostGroup()).may_stop
        assert make_vote(CountingModel(), plugins, HostGroup()).has_news() is has_news
        assert make_vote(StopModelWhen(wants=False), plugins, HostGroup()).has_news(), "a model may change it any time"
    assert plugin.calls == 0
