"""`OptunaPlugin` with real studies."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from torch import nn

import helios.plugins as hlp
import helios.plugins.optuna as hlpo
from helios import DataModule, Model, Plugin, Trainer, TrainingState
from helios.errors import UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path


class Batches(DataModule):
    def setup(self) -> None:
        """Prepare nothing: there are three batches."""

    def train_dataloader(self) -> Any:
        return [torch.ones(2, 1)] * 3, None

    def valid_dataloader(self) -> Any:
        return [torch.ones(2, 1)], None


class Scripted(Model):
    """Reports the given scores, one at each validation; `None` for no metric."""

    def __init__(self, scores: list[float | None], save_name: str = "scripted") -> None:
        super().__init__(save_name)
        self._scores = scores
        self.ends = 0
        self.epochs = 0
        self.validated: list[int] = []

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self._net = nn.Linear(1, 1)
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=0.1)

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        del state
        self._optimizer.zero_grad()
        self._net(batch).mean().backward()
        self._optimizer.step()

    def valid_step(self, batch: Any, step: int) -> None:
        """Compute nothing: the scores are given."""

    def on_validation_end(self, validation_cycle: int) -> None:
        score = self._scores[validation_cycle]
        self.validated.append(validation_cycle)
        if score is not None:
            self.metrics["score"] = score
        plugin = self.trainer.plugins[hlpo.OptunaPlugin.plugin_id]
        assert isinstance(plugin, hlpo.OptunaPlugin)
        plugin.report_metrics(validation_cycle)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        del current_epoch
        self.epochs += 1

    def on_training_end(self) -> None:
        self.ends += 1


class PruneAt(optuna.pruners.BasePruner):
    """Prunes at a step, and counts the calls."""

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.asked: list[int | None] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        del study
        self.asked.append(trial.last_step)
        return self.step is not None and trial.last_step == self.step


def make_trial(pruner: optuna.pruners.BasePruner | None = None, **kwargs: Any) -> optuna.Trial:
    study = optuna.create_study(pruner=pruner or PruneAt(), **kwargs)
    return study.ask()


def fit(trial: optuna.Trial, model: Scripted, root: Path | None = None, epochs: int = 4) -> hlpo.OptunaPlugin:
    trainer = Trainer(
        total_steps=epochs,
        valid_frequency=1,
        chkpt_root=root,
        chkpt_frequency=None if root is None else 1,
        print_banner=False,
        use_cpu=True,
    )
    plugin = hlpo.OptunaPlugin(trial, "score")
    plugin.configure_trainer(trainer)
    plugin.configure_model(model)
    trainer.fit(model, Batches())
    return plugin


def reports(trial: optuna.Trial) -> dict[int, float]:
    return trial.study.trials[trial.number].intermediate_values


def test_import_without_optuna_names_the_extra() -> None:
    """Without optuna, the import of the module names the extra to install."""
    code = "import sys; sys.modules['optuna'] = None\nimport helios.plugins.optuna"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in result.stderr
    assert "helios-train[tune]" in result.stderr


def test_the_plugin_holds_the_trial_and_is_registered() -> None:
    """The plug-in has its trial and its id, and is registered."""
    trial = make_trial()
    plugin = hlp.create_plugin("OptunaPlugin", trial, "score")
    assert isinstance(plugin, hlpo.OptunaPlugin)
    assert plugin.trial is trial
    assert plugin.plug_id == hlpo.OptunaPlugin.plugin_id == "optuna"


def test_configure_trainer_registers_plugin_and_exception() -> None:
    """The plug-in is registered, and pruning is not logged as an error; a second call changes nothing."""
    trainer = Trainer(total_steps=1, print_banner=False)
    plugin = hlpo.OptunaPlugin(make_trial(), "score")
    plugin.configure_trainer(trainer)
    plugin.configure_trainer(trainer)
    assert trainer.plugins[hlpo.OptunaPlugin] is plugin
    assert trainer.plugins[0] is plugin
    assert trainer.train_exceptions == [optuna.TrialPruned]


def test_configure_model_appends_the_number_once() -> None:
    """The save name ends in the trial's number, also after two calls."""
    study = optuna.create_study()
    study.ask()
    plugin, model = hlpo.OptunaPlugin(study.ask(), "score"), Scripted([])
    plugin.configure_model(model)
    plugin.configure_model(model)
    assert model.save_name == "scripted_trial-1"


def test_a_retried_trial_keeps_the_first_number() -> None:
    """A retry with a new number uses the folder of the first attempt."""
    study = optuna.create_study()
    for _ in range(3):
        study.ask()
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs={"failed_trial": 1}))
    trial, model = study.ask(), Scripted([])
    assert trial.number == 3
    hlpo.OptunaPlugin(trial, "score").configure_model(model)
    assert model.save_name == "scripted_trial-1"


def test_metrics_are_reported_when_there_are_any() -> None:
    """A metric that appears later is reported from then on; an absent one is not."""
    trial = make_trial()
    fit(trial, Scripted([None, 2.0, 3.0, 4.0]))
    assert reports(trial) == {1: 2.0, 2: 3.0, 3: 4.0}


def test_both_names_report() -> None:
    """The guide's `register_metrics` is `report_metrics`."""
    assert hlpo.OptunaPlugin.register_metrics is hlpo.OptunaPlugin.report_metrics


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_are_reported(value: float, caplog: pytest.LogCaptureFixture) -> None:
    """Nan and infinities reach the trial; nan is logged as a warning."""
    trial = make_trial()
    with caplog.at_level(logging.WARNING):
        fit(trial, Scripted([1.0, value, 1.0, 1.0]))
    assert repr(reports(trial)[1]) == repr(value)
    assert ("'score' is nan at validation 1" in caplog.text) == math.isnan(value)


def test_a_tensor_is_a_metric_too() -> None:
    """A tensor with one element is reported as a number."""
    trial = make_trial()
    fit(trial, Scripted([torch.tensor(0.5)] * 4))  # type: ignore[list-item]  # users do
    assert reports(trial)[1] == 0.5


def test_the_pruner_is_asked_once_a_report() -> None:
    """The pruner is called once for each of four validations, and not for batches."""
    pruner = PruneAt()
    fit(make_trial(pruner), Scripted([1.0, 2.0, 3.0, 4.0]))
    assert pruner.asked == [0, 1, 2, 3]


def test_a_pruned_trial_ends_training_and_then_raises(caplog: pytest.LogCaptureFixture) -> None:
    """Training ends at the report, `on_training_end` runs exactly once, then fit raises, unlogged."""
    model = Scripted([1.0, 2.0, 3.0, 4.0])
    trial = make_trial(PruneAt(1))
    with pytest.raises(optuna.TrialPruned, match="trial 0 was pruned at validation 1"):
        fit(trial, model)
    assert (model.validated, model.epochs, model.ends) == ([0, 1], 2, 1)
    assert reports(trial) == {0: 1.0, 1: 2.0}
    assert "Traceback" not in caplog.text


def test_check_pruned_does_nothing_otherwise() -> None:
    """`check_pruned` does nothing for a trial that was not pruned."""
    fit(make_trial(), Scripted([1.0] * 4)).check_pruned()
    hlpo.OptunaPlugin(make_trial(), "score").check_pruned()


def test_a_distributed_run_returns_and_the_caller_raises() -> None:
    """With several processes, `check_pruned` raises, and not `fit`."""
    plugin = hlpo.OptunaPlugin(make_trial(), "score")
    plugin.is_distributed = True
    plugin._reports, plugin._is_pruned = {1: 1.0}, True
    plugin.on_fit_end(interrupted=False)
    with pytest.raises(optuna.TrialPruned):
        plugin.check_pruned()


def test_a_resumed_trial_reports_nothing_twice(tmp_path: Path) -> None:
    """A run that is resumed from a checkpoint reports only new values, and calls the pruner only for them."""
    pruner = PruneAt()
    trial = make_trial(pruner)
    fit(trial, Scripted([1.0, 2.0, 3.0, 4.0]), tmp_path, epochs=3)
    newest = max((tmp_path / "scripted_trial-0").iterdir())
    assert "epoch_3" in newest.name
    newest.unlink()  # As if killed after the third report, before its checkpoint.
    pruner.asked.clear()
    fit(trial, Scripted([1.0, 2.0, 3.0, 4.0]), tmp_path, epochs=4)
    assert reports(trial) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    assert pruner.asked == [2, 3]


def test_a_replayed_step_before_the_last_report_is_not_asked_about(tmp_path: Path) -> None:
    """A trial continues where it continued before it was killed, although its last report would prune it."""
    pruner = PruneAt()
    trial = make_trial(pruner)
    fit(trial, Scripted([1.0, 2.0, 3.0, 4.0]), tmp_path, epochs=3)
    for path in sorted((tmp_path / "scripted_trial-0").iterdir())[1:]:
        path.unlink()  # Resume from the first epoch.
    pruner.asked.clear()
    pruner.step = 2
    model = Scripted([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(optuna.TrialPruned, match="validation 2"):
        fit(trial, model, tmp_path)
    assert model.validated == [0, 1, 2]
    assert pruner.asked == [2]


def test_a_retry_gets_the_reports_that_its_own_trial_lacks(tmp_path: Path) -> None:
    """A retry with a new trial ends with the intermediate values of an uninterrupted one."""
    study = optuna.create_study(pruner=PruneAt())
    first = study.ask()
    fit(first, Scripted([1.0, 2.0, 3.0, 4.0]), tmp_path, epochs=2)
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING, system_attrs={"failed_trial": 0}))
    retry = study.ask()
    fit(retry, Scripted([1.0, 2.0, 3.0, 4.0]), tmp_path)
    assert reports(retry) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}


def test_a_retry_asks_the_pruner_again(tmp_path: Path) -> None:
    """The retry of a pruned trial is pruned if the pruner decides so now: the earlier decision does not count."""
    pruner = PruneAt(1)
    trial = make_trial(pruner)
    with pytest.raises(optuna.TrialPruned):
        fit(trial, Scripted([1.0, 2.0, 3.0, 4.0]), tmp_path)
    again = Scripted([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(optuna.TrialPruned):
        fit(trial, again, tmp_path)
    assert (again.validated, again.ends) == ([0, 1], 1)
    pruner.step = None
    spared = Scripted([1.0, 2.0, 3.0, 4.0])
    fit(trial, spared, tmp_path)
    assert spared.validated == [0, 1, 2, 3]
    assert reports(trial) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}


@pytest.mark.parametrize("kind", [optuna.pruners.SuccessiveHalvingPruner, optuna.pruners.HyperbandPruner])
def test_a_pruner_with_state_decides_the_same_again(kind: Any, tmp_path: Path) -> None:
    """Successive halving writes an attribute when it is called; a run that was killed after that is pruned again."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    pruner = kind(min_resource=1, reduction_factor=2)
    study = optuna.create_study(study_name="study", storage=url, pruner=pruner)
    for value in (1.0, 2.0):
        good = study.ask()
        for step in range(1, 5):
            good.report(value, step)
            good.should_prune()
        study.tell(good, value)
    trial = study.ask()
    pruned_at = []
    for attempt in range(3):
        model = Scripted([9.0, 9.0, 9.0, 9.0])
        with pytest.raises(optuna.TrialPruned):
            fit(optuna.Trial(study, trial._trial_id), model, tmp_path / str(attempt))  # Each from the start.
        pruned_at.append(model.validated)
    assert pruned_at[0] == pruned_at[1] == pruned_at[2]


def test_suggest_wraps_the_three_kinds() -> None:
    """Each kind calls the trial's method; an unknown kind is a KeyError that lists the kinds."""
    plugin = hlpo.OptunaPlugin(optuna.trial.FixedTrial({"c": "a", "i": 3, "f": 0.5}), "score")
    assert plugin.suggest("categorical", "c", choices=["a", "b"]) == "a"
    assert plugin.suggest("int", "i", low=1, high=5) == 3
    assert plugin.suggest("float", "f", low=0.1, high=1.0, log=True) == 0.5
    with pytest.raises(KeyError, match="'uniform' is no kind of suggestion: there are .*categorical.*int.*float"):
        plugin.suggest("uniform", "u", low=0, high=1)
    assert issubclass(UnknownNameError, KeyError)


def test_a_second_plugin_that_stops_training_is_refused() -> None:
    """Pruning holds the claim to stop training."""

    class Stopper(Plugin):
        def setup(self) -> None:
            """Do nothing."""

        def should_training_stop(self) -> bool:
            return False

    trainer = Trainer(total_steps=1, print_banner=False)
    hlpo.OptunaPlugin(make_trial(), "score").configure_trainer(trainer)
    with pytest.raises(ValueError, match="should_training_stop"):
        Stopper("stopper").configure_trainer(trainer)


def test_the_study_sees_the_guides_objective(tmp_path: Path) -> None:
    """The guide's objective in one process: the study has values, pruned states and intermediate values."""

    def objective(trial: optuna.Trial) -> float:
        model, datamodule = Scripted([float(trial.number)] * 4), Batches()
        trainer = Trainer(total_steps=4, valid_frequency=1, print_banner=False, chkpt_root=tmp_path)
        plugin = hlpo.OptunaPlugin(trial, "score")
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        trainer.fit(model, datamodule)
        plugin.check_pruned()
        if trainer.queue is None:
            return float(model.metrics["score"])
        return float(trainer.queue.get()["score"])

    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=1))
    study.optimize(objective, n_trials=3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert study.best_value == 0.0
