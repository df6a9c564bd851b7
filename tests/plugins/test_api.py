"""What plug-ins can do beside the hooks of training: request a stop, have the last word, return a result of rank 0."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

import helios
from helios.checkpoint.archive import load_archive
from helios.data import DataLoaderParams
from helios.errors import ArgumentTypeError
from helios.plugins.optuna import OptunaPlugin
from helios.testing import TinyDataModule, TinyModel
from helios.trainer import find_last_checkpoint
from tests.trainer.parts import CountingModel, Failing, ListData, Pruned, make_trainer

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class Requesting(helios.Plugin):
    """Requests a stop in a hook."""

    def __init__(self, plug_id: str, hook: str, at: int, *, final: bool = True, rank: int | None = None) -> None:
        super().__init__(plug_id)
        self.hook, self.at, self.final, self.only_rank = hook, at, final, rank

    def _request(self, hook: str, number: int) -> None:
        if hook == self.hook and number == self.at and self.only_rank in (None, self.rank):
            self.request_stop(f"{hook} {number}", final=self.final)

    def on_training_batch_start(self, state: TrainingState) -> None:
        self._request("batch start", state.global_iteration)

    def on_training_batch_end(self, state: TrainingState) -> None:
        self._request("batch end", state.global_iteration)

    def on_optimizer_step(self, state: TrainingState) -> None:
        self._request("step", state.global_iteration)

    def on_validation_end(self, validation_cycle: int) -> None:
        self._request("validation", validation_cycle)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self._request("epoch", current_epoch)


# The batches that are trained: an epoch has three, and every second batch has a validation.
REQUESTS = [("batch start", 2, 2), ("batch end", 4, 4), ("step", 5, 5), ("validation", 1, 4), ("epoch", 1, 3)]


@pytest.mark.parametrize(("hook", "at", "batches"), REQUESTS)
def test_a_requested_stop_ends_training_after_the_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hook: str, at: int, batches: int
) -> None:
    """In one process, training stops after the batch; it is final, and the log has the reason."""
    caplog.set_level(logging.INFO, "helios")
    for _ in range(2):  # The second run finds that training has ended.
        trainer = make_trainer(tmp_path, train_unit="iteration", total_steps=20, valid_frequency=2)
        trainer.register_plugin(Requesting("one", hook, at))
        model = CountingModel()
        assert trainer.fit(model, ListData())
        assert len(model.seen) == batches
    assert load(tmp_path)["state"]["global_iteration"] == batches
    assert load(tmp_path)["stopped"]
    assert f"plug-in 'one' requests that training stops: {hook} {at}" in caplog.text


def load(root: Path) -> dict[str, Any]:
    path = find_last_checkpoint(root / "counting")
    assert path is not None
    training: dict[str, Any] = load_archive(path)["training"]
    return training


def test_a_stop_that_is_not_final_is_continued(tmp_path: Path) -> None:
    """Training that was stopped for now continues from its newest checkpoint, and ends as if it had not stopped."""
    whole, resumed = CountingModel(), CountingModel()
    assert make_trainer(tmp_path / "whole", total_steps=3).fit(whole, ListData())
    trainer = make_trainer(tmp_path, total_steps=3, chkpt_frequency=1)
    trainer.register_plugin(Requesting("one", "batch end", 5, final=False))
    assert trainer.fit(CountingModel(), ListData())
    assert load(tmp_path)["state"]["global_iteration"] == 3
    assert make_trainer(tmp_path, total_steps=3, chkpt_frequency=1).fit(resumed, ListData())
    assert resumed.seen == whole.seen
    assert resumed.weight == whole.weight


def test_any_number_of_plugins_may_request_a_stop(tmp_path: Path) -> None:
    """Requests of several plug-ins compose, also with one that holds the claim; a final one decides."""

    class Claiming(helios.Plugin):
        def should_training_stop(self) -> bool:
            return False

    trainer = make_trainer(tmp_path, train_unit="iteration", total_steps=20)
    for plugin in (Claiming("claim"), Requesting("a", "step", 3, final=False), Requesting("b", "batch end", 3)):
        trainer.register_plugin(plugin)
    assert trainer.fit(CountingModel(), ListData())
    assert load(tmp_path)["stopped"]
    assert load(tmp_path)["state"]["global_iteration"] == 3


def test_a_request_of_an_earlier_run_is_forgotten() -> None:
    """A request stops the run in which it is made, and not the next one of the same plug-in."""
    plugin, model = Requesting("one", "batch end", 6), CountingModel()
    trainer = make_trainer(total_steps=2)
    trainer.register_plugin(plugin)
    trainer.fit(model, ListData())
    plugin.request_stop("outside of a run")
    trainer.fit(model, ListData())
    assert len(model.seen) == 6


def test_a_reason_is_needed() -> None:
    """A reason that is no string is refused."""
    with pytest.raises(ArgumentTypeError, match="reason is 3, a int: say in a string why"):
        helios.Plugin("x").request_stop(3)  # type: ignore[arg-type]  # the point


class Told(Requesting):
    """Has a result of rank 0, and notes what it is told."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__("told", *arguments, **options)
        self.batches = 0
        self.received: Any = None

    def on_training_batch_end(self, state: TrainingState) -> None:
        super().on_training_batch_end(state)
        self.batches = state.global_iteration

    def rank0_result(self) -> Any:
        return {"rank": self.rank, "batches": self.batches}

    def receive_result(self, result: Any) -> None:
        self.received = result


@pytest.mark.parametrize(("hook", "at", "batches"), [("batch end", 3, 4), ("validation", 0, 2), ("epoch", 1, 6)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_request_of_one_rank_stops_all(tmp_path: Path, hook: str, at: int, batches: int, rank: int) -> None:
    """With two ranks, a request of either stops both at the next boundary; rank 0's result is received here."""
    options: dict[str, Any] = {"valid_frequency": 2, "chkpt_root": tmp_path, "print_banner": False, "use_cpu": True}
    trainer = helios.Trainer(train_unit="iteration", total_steps=20, num_processes=2, **options)
    trainer.register_plugin(plugin := Told(hook, at, rank=rank))
    assert trainer.fit(TinyModel("told"), TinyDataModule(24, DataLoaderParams(batch_size=2)))
    assert plugin.received == {"rank": 0, "batches": batches}


class Noting(helios.Plugin):
    """Notes the last hooks, and draws in them."""

    def __init__(self, plug_id: str = "noting") -> None:
        super().__init__(plug_id)
        self.notes: list[Any] = []

    def on_checkpoint_saved(self, path: Path, state: TrainingState) -> None:
        assert load_archive(path)["training"]["state"]["global_iteration"] == state.global_iteration
        self.notes.append((path.name, state.global_iteration, float(torch.rand(()))))

    def on_exception(self, error: BaseException) -> None:
        self.notes.append(error)

    def on_fit_end(self, *, interrupted: bool) -> None:
        self.notes.append(interrupted)


def test_plugins_are_told_of_each_checkpoint(tmp_path: Path) -> None:
    """The hook runs when the file is whole, once for each, and what it draws changes nothing of the run."""
    plain, noted = CountingModel(), CountingModel()
    make_trainer(tmp_path / "plain", total_steps=3, chkpt_frequency=1).fit(plain, ListData())
    trainer = make_trainer(tmp_path, total_steps=3, chkpt_frequency=1)
    trainer.register_plugin(plugin := Noting())
    trainer.fit(noted, ListData())
    names = [f"counting_epoch_{epoch}_iter_{3 * epoch}.pth" for epoch in (1, 2, 3)]
    assert [note[:2] for note in plugin.notes[:-1]] == list(zip(names, (3, 6, 9), strict=True))
    assert len({note[2] for note in plugin.notes[:-1]}) == 3
    assert plugin.notes[-1] is False
    assert noted.weight == plain.weight


def test_the_model_is_told_of_each_checkpoint(tmp_path: Path) -> None:
    """A model has the hook as well, after the plug-ins."""

    class Saved(CountingModel):
        paths: list[Path]

        def on_checkpoint_saved(self, path: Path, state: TrainingState) -> None:
            assert state.global_iteration == 6
            self.paths = [path]

    model = Saved()
    make_trainer(tmp_path).fit(model, ListData())
    assert model.paths == [find_last_checkpoint(tmp_path / "counting")]


@pytest.mark.parametrize("kind", [ValueError, Pruned, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["fit", "test"])
def test_plugins_are_told_of_exceptions(
    caplog: pytest.LogCaptureFixture, method: str, kind: type[BaseException]
) -> None:
    """Plug-ins and the model get what is raised, control flow too; one that raises hides nothing and is logged."""

    class Broken(Noting):
        def on_exception(self, error: BaseException) -> None:
            super().on_exception(error)
            raise ZeroDivisionError

    class Told(Failing):
        told: list[BaseException]

        def on_exception(self, error: BaseException) -> None:
            self.told = [error]

    error = kind("boom")
    trainer, model = make_trainer(), Told("step", error)
    for plugin in (broken := Broken("broken"), noting := Noting()):
        trainer.register_plugin(plugin)
    trainer.train_exceptions.append(Pruned)
    with pytest.raises(kind, match="boom"):
        getattr(trainer, method)(model, ListData())
    assert broken.notes == noting.notes == model.told == [error]
    assert "Broken.on_exception failed" in caplog.text


def test_an_error_in_setup_is_told_to_nobody() -> None:
    """Parts that have not been set up have nothing to say about it."""
    trainer = make_trainer()
    trainer.register_plugin(plugin := Noting())
    with pytest.raises(ValueError, match="boom"):
        trainer.fit(Failing("setup", ValueError("boom")), ListData())
    assert plugin.notes == []


class Stepping(helios.Plugin):
    """Counts and draws at each optimizer step."""

    def __init__(self) -> None:
        super().__init__("stepping")
        self.draws: list[tuple[int, int, float]] = []

    def on_optimizer_step(self, state: TrainingState) -> None:
        self.draws.append((state.global_iteration, state.current_iteration, float(torch.rand(()))))


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_hook_of_optimizer_steps_is_exact(tmp_path: Path, accumulation_steps: int, cut: int) -> None:
    """Interrupted and resumed, it runs at each completed accumulation once, and draws the same numbers."""

    def run(root: Path, steps: int) -> tuple[Stepping, CountingModel]:
        plugin, model = Stepping(), CountingModel()
        options = {"train_unit": "iteration", "total_steps": steps, "accumulation_steps": accumulation_steps}
        trainer = make_trainer(root, **options)
        trainer.register_plugin(plugin)
        trainer.fit(model, ListData())
        return plugin, model

    whole, model = run(tmp_path / "whole", 4)
    assert [draw[:2] for draw in whole.draws] == [(n * accumulation_steps, n) for n in (1, 2, 3, 4)]
    run(tmp_path / "cut", cut)
    resumed, resumed_model = run(tmp_path / "cut", 4)
    assert resumed.draws == whole.draws
    assert resumed_model.weight == model.weight


def test_optuna_uses_the_public_plugin_api_alone() -> None:
    """OptunaPlugin overrides and calls no private member of Plugin that users' plug-ins do not have documented."""
    documented = {"_register_in_trainer", "_append_train_exceptions", "_append_test_exceptions"}
    private = {name for name in vars(helios.Plugin) if name.startswith("_") and not name.startswith("__")}
    assert private.isdisjoint(vars(OptunaPlugin))
    used = {
        name for function in vars(OptunaPlugin).values() for name in getattr(function, "__code__", run_code).co_names
    }
    assert used & private <= documented


run_code = compile("", "", "exec")
