"""The Optuna samples of the plug-in guide that users of Helios 1.x know, as printed there.

Each sample is run. Where it is a fragment, the test says what is around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState

from helios.plugins.optuna import OptunaPlugin, checkpoint_sampler, restore_sampler, resume_study
from tests.docs.guide_optuna import (
    CHECKPOINTING,
    OBJECTIVE,
    REGISTRATION,
    RESTORING,
    RESUMING,
    SUGGESTING,
    Batches,
    Tuned,
    make_trainer,
    run_sample,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_registration_as_printed() -> None:
    """The sample registers the plug-in, found by class and by id, and renames the model by the trial."""
    found: list[Any] = []
    names = run_sample(
        REGISTRATION,
        make_model=lambda: Tuned([]),
        make_datamodule=Batches,
        make_trainer=make_trainer,
        joined=lambda *parts: found.extend(parts),
    )
    study = optuna.create_study()
    study.ask()
    trial = study.ask()
    names["objective"](trial)
    plugin, model, trainer = found
    assert trainer.plugins[OptunaPlugin] is trainer.plugins["optuna"] is plugin
    assert plugin.trial is trial
    assert model.save_name == "tuned_trial-1"


def test_the_objective_as_printed() -> None:
    """The guide's model and objective run a study: suggested in `setup`, reported, pruned, returned."""
    curves = [[0.1, 0.5, 0.9], [0.6, 0.7, 0.8], [0.0, 0.0, 0.0]]
    models = []

    def make_parts(trial: optuna.Trial) -> tuple[Any, ...]:
        models.append(Tuned(curves[trial.number]))
        return models[-1], Batches(), make_trainer(), OptunaPlugin(trial, "accuracy")

    objective = run_sample(OBJECTIVE, make_parts=make_parts)["objective"]
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1),
    )
    study.optimize(objective, n_trials=3)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    assert [trial.value for trial in study.trials[:2]] == [0.9, 0.8]
    assert [trial.intermediate_values for trial in study.trials] == [
        {0: 0.1, 1: 0.5, 2: 0.9},
        {0: 0.6, 1: 0.7, 2: 0.8},
        {0: 0.0, 1: 0.0},
    ]
    assert [model.ends for model in models] == [1, 1, 1]
    for trial, model in zip(study.trials, models, strict=True):
        assert trial.params == model._tune_params
        assert set(trial.params) == {"l1", "l2", "lr"}


def test_suggesting_as_printed() -> None:
    """The categorical line suggests; the float line is passed on, and Optuna refuses its `low=0, log=True`."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    names = run_sample(SUGGESTING, plugin=OptunaPlugin(trial, "accuracy"))
    with pytest.raises(ValueError, match="low"):
        names["objective"](trial)
    assert trial.params["val1"] in (1, 2, 3)
    repaired = SUGGESTING.replace("low=0,", "low=0.01,")
    run_sample(repaired, plugin=OptunaPlugin(trial, "accuracy"))["objective"](trial)
    assert 0.01 <= trial.params["val2"] <= 1


def test_samplers_as_printed(tmp_path: Path) -> None:
    """Nothing is restored before a checkpoint; after one, the sampler draws what the saved one would have."""
    names = {"checkpoint_sampler": checkpoint_sampler, "restore_sampler": restore_sampler, "root": tmp_path / "new"}
    assert run_sample(RESTORING, **names)["sampler"] is None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    run_sample(CHECKPOINTING, **names)["objective"](trial)
    drawn = trial.suggest_float("x", 0, 1)
    again = optuna.create_study(sampler=run_sample(RESTORING, **names)["sampler"]).ask()
    assert again.suggest_float("x", 0, 1) == drawn


def test_resuming_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample makes the study; run again, it lets the failed trial wait in its slot and keeps a backup."""
    monkeypatch.chdir(tmp_path)
    study = run_sample(RESUMING, resume_study=resume_study)["study"]
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), state=TrialState.FAIL)
    before = study.trials
    after = run_sample(RESUMING, resume_study=resume_study)["study"].trials
    assert after[0] == before[0]
    assert [trial.state for trial in after] == [TrialState.COMPLETE, TrialState.WAITING]
    assert after[1].params == before[1].params
    assert (tmp_path / "study-backup-1.db").exists()
