"""Small studies over a small network, and processes that are killed while they run them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import alembic.command  # Optuna imports these lazily; here once for all processes.
import cmaes  # As above.
import optuna
import scipy.stats  # As above.
import sqlalchemy.orm  # As above.
import torch
import torch._dynamo  # The first optimizer step imports it, in a second or two: here once for all processes.
from torch import nn

from helios import DataModule, Model, Trainer, TrainingState
from helios.errors import RankFailedError
from helios.plugins.optuna import OptunaPlugin, ReproducibleSampler, run_study
from tests.processes import fork_ranks
from tests.resume.runs import KILLER

if TYPE_CHECKING:
    import random

LOST = 3  # The exit code of a process that lost a rank.
_PRELOADED = (alembic.command, cmaes, scipy.stats, sqlalchemy.orm)

torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclasses.dataclass(frozen=True)
class StudySpec:
    """The settings of a study."""

    sampler: str = "random"
    pruner: str = "median"
    trials: int = 8
    epochs: int = 4
    url: str = ""
    sleep: float = 0.0
    ranks: int | None = None
    host: str = ""  # The host name that the child sees.
    last_words: str = ""  # In trial 1, rank 1 creates this file and is killed, unless the file exists.

    def __str__(self) -> str:
        """Return a short name for the ids of tests."""
        return f"{self.sampler}-{self.pruner}"


class Data(DataModule):
    def setup(self) -> None:
        inputs = torch.linspace(-1, 1, 12).reshape(12, 1)
        dataset = torch.utils.data.TensorDataset(inputs, inputs**2)
        self._train_dataset = self._create_dataset(dataset, {"batch_size": 4, "shuffle": True})
        self._valid_dataset = self._create_dataset(dataset, {"batch_size": 12})


class Net(Model):
    """Suggests in `setup`, as the guide does, and reports after each validation."""

    def __init__(self, spec: StudySpec) -> None:
        super().__init__("net")
        self._spec = spec

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        plugin = self.trainer.plugins[OptunaPlugin]
        width = plugin.suggest("categorical", "width", choices=[2, 4, 8])
        rate = plugin.suggest("float", "rate", low=1e-4, high=1e-1, log=True)
        momentum = plugin.suggest("float", "momentum", low=0.0, high=0.9)
        self._net = self.wrap(nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)))
        self._optimizer = torch.optim.SGD(self._net.parameters(), lr=rate, momentum=momentum)
        KILLER.tick()

    def train_step(self, batch: Any, state: TrainingState) -> None:
        if self._spec.sleep:
            time.sleep(self._spec.sleep)
        inputs, targets = batch
        self._optimizer.zero_grad()
        loss = nn.functional.mse_loss(self._net(inputs + 0.01 * torch.randn(inputs.shape)), targets)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own method
        self._optimizer.step()
        KILLER.tick()
        words = Path(self._spec.last_words)
        number = self.trainer.plugins[OptunaPlugin].trial.number
        if self._spec.last_words and (self.rank, number, state.current_iteration) == (1, 1, 2) and not words.exists():
            words.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def valid_step(self, batch: Any, step: int) -> None:
        del step
        inputs, targets = batch
        self._val_scores["loss"] = float(nn.functional.mse_loss(self._net(inputs), targets))

    def on_validation_end(self, validation_cycle: int) -> None:
        KILLER.tick()
        self.metrics["loss"] = self._val_scores["loss"]
        plugin = self.trainer.plugins[OptunaPlugin.plugin_id]
        assert isinstance(plugin, OptunaPlugin)
        plugin.report_metrics(validation_cycle)
        KILLER.tick()

    def on_training_end(self) -> None:
        KILLER.tick()
        if self.is_distributed and self.rank == 0:
            self.trainer.queue.put({"loss": self.metrics["loss"]})


def make_objective(spec: StudySpec, folder: Path) -> Any:
    """Return the guide's objective."""

    def objective(trial: optuna.Trial) -> float:
        KILLER.tick()
        model, datamodule = Net(spec), Data()
        trainer = Trainer(
            total_steps=spec.epochs,
            valid_frequency=1,
            chkpt_frequency=1,
            chkpt_root=folder / "checkpoints",
            print_banner=False,
            use_cpu=True if spec.ranks is None else None,
            num_processes=spec.ranks,
        )
        plugin = OptunaPlugin(trial, "loss")
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        trainer.fit(model, datamodule)
        plugin.check_pruned()
        KILLER.tick()
        if trainer.queue is None:
            return float(model.metrics["loss"])
        return float(trainer.queue.get()["loss"])

    return objective


def make_sampler(kind: str) -> optuna.samplers.BaseSampler:
    """Return a sampler whose suggestions do not depend on kills."""
    factories = {
        "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3),
        "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, n_startup_trials=2),
        "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=3),
    }
    return ReproducibleSampler(factories[kind], seed=7)


def make_pruner(kind: str) -> optuna.pruners.BasePruner:
    if kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=4, reduction_factor=2)


def url_of(spec: StudySpec, folder: Path) -> str:
    return spec.url or f"sqlite:///{folder / 'study.db'}"


def make_study(spec: StudySpec, folder: Path) -> optuna.Study:
    return optuna.create_study(
        study_name=folder.name,
        storage=url_of(spec, folder),
        load_if_exists=True,
        sampler=make_sampler(spec.sampler),
        pruner=make_pruner(spec.pruner),
    )


def child(spec: StudySpec, folder: str, kill_at: int | None) -> None:
    """Run the study in this process."""
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    logging.getLogger("helios").setLevel(logging.ERROR)
    KILLER.at = kill_at
    if spec.host:
        mock.patch.object(socket, "gethostname", return_value=spec.host).start()
    if spec.ranks is not None:
        fork_ranks()
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    try:
        run_study(lambda: make_study(spec, where), make_objective(spec, where), spec.trials)
    except RankFailedError as error:
        sys.exit(LOST if error.is_lost else 1)


_context = multiprocessing.get_context("forkserver")


def start(spec: StudySpec, folder: Path, *, kill_at: int | None = None) -> Any:
    """Start a process that runs the study."""
    process = _context.Process(target=child, args=(spec, str(folder), kill_at), daemon=False)
    process.start()
    return process


def finish(spec: StudySpec, folder: Path, *, kill_at: int | None = None) -> bool:
    """Run the study in a process, to its end or until it is killed.

    Returns:
        Whether it or one of its ranks was killed.
    """
    process = start(spec, folder, kill_at=kill_at)
    process.join(150)
    assert process.exitcode in (0, LOST, -signal.SIGKILL), (process.exitcode, kill_at)
    return bool(process.exitcode)


def kill_at_random(spec: StudySpec, folder: Path, *, kills: int, longest: float, chance: random.Random) -> int:
    """Kill the study's process at random times, restart it each time, and finally let it finish.

    Returns:
        The number of kills.
    """
    for killed in range(kills):
        process = start(spec, folder)
        process.join(chance.uniform(0.1, longest))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        if process.exitcode == 0:
            return killed
    assert not finish(spec, folder)
    return kills


def table(spec: StudySpec, folder: Path) -> list[dict[str, Any]]:
    """Return the part of the study's trials that a kill must not change."""
    study = optuna.load_study(study_name=folder.name, storage=url_of(spec, folder))
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "params": trial.params,
            "values": trial.values,
            "intermediate": {step: _repr(value) for step, value in sorted(trial.intermediate_values.items())},
        }
        for trial in study.get_trials(deepcopy=False)
    ]


def _repr(value: float) -> str:
    return "nan" if math.isnan(value) else repr(value)
