from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import random
import time
import warnings
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from helios import DataModule, Model, Trainer
from helios.errors import ArgumentTypeError, ConfigurationError, StudyViewError, UnknownNameError
from helios.plugins.optuna import OptunaPlugin, SearchSpace, distributed, run_study
from helios.plugins.optuna.shared_trial import SharedTrial
from helios.plugins.optuna.study_view import describe_study, view_study
from helios.plugins.optuna.trial import RemoteTrial, intermediate_values
from helios.ranks.messages import decode_message, encode_message
from helios.ranks.object_host import ObjectHost, ask_by
from helios.ranks.stores import connect_store, host_store
from tests.distributed import torchrun
from tests.docs.guide_optuna import run_guide
from tests.docs.guide_optuna import table as guide_table
from tests.plugins.optuna.studies import StudySpec, finish, kill_at_random, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPACE = SearchSpace.from_dict({"extra": {"kind": "int", "low": 0, "high": 9}})


class Asking(Model):
    """Suggests on every rank, and reports a metric that depends only on the suggestions."""

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        trial = self.trainer.plugins[OptunaPlugin].trial
        self._rate = trial.suggest_float("rate", 1e-3, 1.0, log=True)
        self._width = trial.suggest_int("width", 1, 64)
        self._kind = trial.suggest_categorical("kind", ["a", "b", "c"])
        self.trainer.plugins[OptunaPlugin].suggest_all(SPACE)

    def train_step(self, batch: Any, state: Any) -> None:
        """Train nothing."""

    def valid_step(self, batch: Any, step: int) -> None:
        """Compute nothing: the metric is known."""

    def on_validation_end(self, validation_cycle: int) -> None:
        # Rank 1 has another value.
        self.metrics["loss"] = self._rate * (validation_cycle + 1) + self._width / 64 + self.rank
        self.trainer.plugins[OptunaPlugin].report_metrics(validation_cycle)

    def on_training_end(self) -> None:
        if self.is_distributed:
            trial = self.trainer.plugins[OptunaPlugin].trial
            self.trainer.queue.put((self.rank, trial.number, (self._rate, self._width, self._kind)))


class Nothing(DataModule):
    def setup(self) -> None:
        """Prepare nothing: the batches are ready."""

    def train_dataloader(self) -> Any:
        return [torch.zeros(1)] * 2, None

    def valid_dataloader(self) -> Any:
        return [torch.zeros(1)], None


def run_asking(storage: Any, processes: int | None, seen: list[Any]) -> list[Any]:
    """Run a study with pruning, and return a description of its trials."""

    def objective(trial: optuna.Trial) -> float:
        trainer = Trainer(
            total_steps=3,
            valid_frequency=1,
            print_banner=False,
            num_processes=processes,
            use_cpu=processes is None or None,
        )
        model, plugin = Asking("asking"), OptunaPlugin(trial, "loss")
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        assert trainer.fit(model, Nothing())
        if trainer.queue is not None:
            seen.append(sorted(trainer.queue.get() for _ in range(2)))
        plugin.check_pruned()
        return float(model.metrics["loss"])

    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.TPESampler(seed=3, n_startup_trials=2),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
    )
    study.optimize(objective, n_trials=6)
    return [
        [trial.number, trial.state, trial.values, trial.params, trial.intermediate_values] for trial in study.trials
    ]


@pytest.fixture(params=["in memory", "sqlite", "journal", "postgres"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return an empty storage of each kind that Optuna has."""
    if request.param == "in memory":
        return None
    if request.param == "journal":
        return JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    return request.getfixturevalue(f"{request.param}_url")


@pytest.mark.usefixtures("forked_ranks")
def test_pruning_on_two_ranks(storage: Any) -> None:
    """In any storage, two ranks get the same suggestions, and the trials equal those of one process."""
    seen: list[Any] = []
    alone = run_asking(None, None, seen)
    together = run_asking(storage, 2, seen)
    assert together == alone
    assert [row[1] for row in alone].count(TrialState.PRUNED) >= 2
    for number, (first, second) in enumerate(seen):
        assert (first[0], second[0]) == (0, 1)
        assert first[1:] == second[1:]
        assert first[1] == number


@pytest.mark.usefixtures("forked_ranks")
def test_the_guide_in_three_launch_modes(tmp_path: Path) -> None:
    """The guide's objective gives the same trials in one process, in two, and under torchrun."""
    with torchrun.start("guide_job", [str(tmp_path)], folder=tmp_path) as job:
        alone = guide_table(run_guide())
        spawned = guide_table(run_guide(use_cpu=None, num_processes=2))
        assert spawned == alone
        assert job.wait(90) == 0, job.output()
    assert {row[1] for row in alone} == {"COMPLETE", "PRUNED"}
    for rank in range(2):
        told = json.loads((tmp_path / f"rank{rank}").read_text(encoding="utf-8"))
        assert told == json.loads(json.dumps(alone))


def test_a_study_of_two_ranks_that_is_killed(tmp_path: Path) -> None:
    """The process that runs a study on two ranks is killed four times; its trials equal those without kills."""
    spec = StudySpec(trials=6, sampler="tpe", ranks=2, sleep=0.04)
    assert not finish(spec, tmp_path / "whole")
    killed = kill_at_random(spec, tmp_path / "killed", kills=4, longest=1.0, chance=random.Random(1))
    assert killed == 4
    assert table(spec, tmp_path / "killed") == table(spec, tmp_path / "whole")


def test_a_study_of_which_one_rank_is_killed(tmp_path: Path) -> None:
    """A trial does not fail if one of its ranks is killed: the next run resumes it bit for bit."""
    spec = StudySpec(trials=3, ranks=2)
    assert not finish(spec, tmp_path / "whole")
    losing = dataclasses.replace(spec, last_words=str(tmp_path / "words"))
    assert finish(losing, tmp_path / "killed")
    assert [row["state"] for row in table(spec, tmp_path / "killed")] == ["COMPLETE", "WAITING"]
    assert not finish(losing, tmp_path / "killed")
    assert table(spec, tmp_path / "killed") == table(spec, tmp_path / "whole")


def test_a_study_under_torchrun_that_is_killed(tmp_path: Path) -> None:
    """Agent and ranks are killed in a trial; after a restart, the trials equal those of two spawned ranks."""
    spec = StudySpec(trials=3, ranks=2)
    folder = tmp_path / "killed"
    folder.mkdir()
    arguments = [str(folder), str(spec.trials), "0.05"]
    with torchrun.start("study_job", arguments, folder=folder) as job:
        wait_for_checkpoint(folder / "checkpoints" / "net_trial-1", job)
    with torchrun.start("study_job", arguments, folder=folder) as job:
        assert not finish(spec, tmp_path / "whole")
        assert job.wait(90) == 0, job.output()
    assert table(spec, folder) == table(spec, tmp_path / "whole")


def test_a_trial_ends_when_all_ranks_have_finished(tmp_path: Path) -> None:
    """A trial ends when all ranks have finished it, and the study ends on all ranks."""
    with torchrun.start("late_study_job", [str(tmp_path)], folder=tmp_path) as job:
        assert job.wait(60) == 0, job.output()
    whole = json.loads((tmp_path / "rank0").read_text(encoding="utf-8"))
    assert whole == [[number, "PRUNED" if number == 1 else "COMPLETE", {"late": number}] for number in range(3)]
    assert json.loads((tmp_path / "rank1").read_text(encoding="utf-8")) == whole


def wait_for_checkpoint(folder: Path, job: torchrun.Job) -> None:
    """Wait until a trial has a checkpoint; the end of the job's `with` block then kills it."""
    for _ in range(6000):
        if folder.is_dir() and any(folder.glob("*.pth")):
            return
        assert job.agent.poll() is None, job.output()
        time.sleep(0.02)
    raise AssertionError(f"there is no checkpoint in {folder}:\n{job.output()}")


def test_a_trial_of_another_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun, a trial of a study that was created on another rank than 0 is rejected, with the remedy."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(ConfigurationError, match="trial 0 was made on rank 1 of 2, but a study lives on rank 0"):
        OptunaPlugin(optuna.create_study().ask(), "loss")


def test_a_view_can_be_read_only() -> None:
    """Other ranks get a view of rank 0's study with its whole content; a change of it raises an error."""
    study = optuna.create_study(direction="maximize", study_name="whole")
    study.set_user_attr("note", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["accuracy"])
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    view = view_study(decode_message(encode_message(describe_study(study)), "news"))
    assert (view.study_name, view.direction, view.best_value) == (study.study_name, study.direction, study.best_value)
    assert (view.user_attrs, view.metric_names) == (study.user_attrs, study.metric_names)
    assert [(t.params, t.values, t.state) for t in view.trials] == [(t.params, t.values, t.state) for t in study.trials]
    changes: list[Any] = [
        view.ask,
        lambda: view.set_user_attr("note", "y"),
        lambda: view.add_trial(study.trials[0]),
        lambda: view.enqueue_trial({"x": 0.5}),
    ]
    for change in changes:
        with pytest.raises(StudyViewError, match="this is a view of a study that rank 0 holds, and this is rank 0"):
            change()
    assert len(view.trials) == 3


def test_a_view_has_trials_that_were_enqueued_out_of_range() -> None:
    """Every value that a trial can have in Optuna is visible on all ranks."""
    study = optuna.create_study()
    study.enqueue_trial({"x": 5.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    view = view_study(decode_message(encode_message(describe_study(study)), "news"))
    assert [(trial.number, trial.params) for trial in view.trials] == [(t.number, t.params) for t in study.trials]
    assert view.trials[0].params == {"x": 5.0}


class Colour(enum.Enum):
    RED = 1


def test_a_view_shows_the_text_of_what_cannot_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    """An attribute or a choice that cannot be sent does not end the study: other ranks get its repr."""
    study = optuna.create_study()
    study.set_user_attr("kind", Colour.RED)

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("colour", Colour.RED)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial.suggest_categorical("c", [Colour.RED, "b"])  # type: ignore[list-item]  # As users may.
        return 0.0

    study.optimize(objective, n_trials=1)
    view = view_study(decode_message(encode_message(describe_study(study)), "news"))
    assert view.user_attrs == {"kind": repr(Colour.RED)}
    (trial,) = view.trials
    assert trial.user_attrs == {"colour": repr(Colour.RED)}
    assert trial.params["c"] in (repr(Colour.RED), "b")
    assert "'kind' of the study is a Colour: ranks other than 0 get its repr" in caplog.text
    assert "'colour' of trial 0 is a Colour" in caplog.text


@contextlib.contextmanager
def remote_trial_of(trial: optuna.Trial) -> Iterator[RemoteTrial]:
    """Return a remote trial whose calls go through a store."""
    store, port = host_store()
    host = ObjectHost()
    with distributed._serving(store.clone(), host), ask_by(distributed._Client(connect_store(port), 1).request):
        yield RemoteTrial(host.number_of(SharedTrial(trial)), trial.number)


def test_a_trial_is_asked_over_a_store() -> None:
    """A remote trial gives the trial's values with their types, and raises the trial's errors."""
    trial = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1)).ask()
    with remote_trial_of(trial) as other:
        assert other.suggest_float("a", 0, 1, step=0.25) == trial.suggest_float("a", 0, 1, step=0.25)
        assert other.suggest_int("b", 1, 64, log=True) == trial.params["b"]
        choices = (None, True, 1, 1.5, "x")
        chosen = trial.suggest_categorical("c", choices)
        assert (type(other.suggest_categorical("c", choices)), chosen) == (type(chosen), other.params["c"])
        other.set_user_attr("note", {"a": (1, b"x"), 2: [None]})
        other.report(float("inf"), 3)
        assert other.should_prune()
        for name in ("params", "distributions", "relative_params", "user_attrs", "datetime_start", "number"):
            assert getattr(other, name) == getattr(trial, name), name
        assert intermediate_values(other) == {3: float("inf")}
        assert SPACE.suggest(other)["extra"] == trial.params["extra"]
        assert trial.study.user_attrs
        with pytest.raises(ValueError, match=r"^CategoricalDistribution does not support dynamic value space\.$"):
            other.suggest_categorical("c", ["y"])
        with pytest.raises(UnknownNameError, match="a trial cannot be asked for 'storage'"):
            other.ask("storage")
        with pytest.raises(
            ArgumentTypeError, match=r"^argument 2 of suggest_categorical\[0\] is a .*Colour, which ranks"
        ):
            other.suggest_categorical("d", [Colour.RED])
        assert other.suggest_int("e", 0, 0) == 0, "what was refused was not asked"


def test_run_study_in_one_process_has_no_ranks() -> None:
    """Without torchrun, `run_study` passes Optuna's own trials to the objective."""
    kinds = []

    def objective(trial: optuna.Trial) -> float:
        kinds.append(type(trial))
        return trial.suggest_float("x", 0, 1)

    study = run_study(optuna.create_study, objective, 2)
    assert kinds == [optuna.Trial, optuna.Trial]
    assert len(study.trials) == 2
