"""`Snapshot`, the state of a study at one moment, from which the report is made."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import html
import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from helios.errors import ArgumentTypeError, ConfigurationError, UnknownNameError
from helios.plugins.optuna.storage.errors import storage_errors
from helios.plugins.optuna.storage.urls import parse_url, show_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import sqlalchemy
    from optuna.study import StudyDirection

STATE_NAMES: Final = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The content of a study, read once, so that all plots show the same moment.

    Args:
        name: the name of the study.
        directions: one for each objective.
        objectives: the names of the objectives.
        trials: all trials, by number.
    """

    name: str
    directions: Sequence[StudyDirection]
    objectives: Sequence[str]
    trials: Sequence[FrozenTrial]

    @classmethod
    def of(cls, study: optuna.Study) -> Snapshot:
        """Read a study."""
        count = len(study.directions)
        names = study.metric_names or (["value"] if count == 1 else [f"objective {i}" for i in range(count)])
        return cls(study.study_name, list(study.directions), names, study.get_trials(deepcopy=False))

    @functools.cached_property
    def best_trials(self) -> list[FrozenTrial]:
        """The best trial, or the Pareto front if there are several objectives; empty if there is no feasible trial."""
        study = self.as_study()
        if len(self.directions) > 1:
            return [self.trials[number] for number in sorted(trial.number for trial in study.best_trials)]
        # Optuna raises if no trial is complete and feasible.
        with contextlib.suppress(ValueError):
            return [self.trials[study.best_trial.number]]
        return []

    def with_state(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of these states."""
        return [trial for trial in self.trials if trial.state in states]

    @functools.cached_property
    def finite_trials(self) -> list[FrozenTrial]:
        """The complete trials with finite values only."""
        return [trial for trial in self.with_state(TrialState.COMPLETE) if is_finite(trial)]

    @functools.cached_property
    def parameters(self) -> list[str]:
        """The names of all parameters of these trials, in the order of their first occurrence."""
        return list(dict.fromkeys(name for trial in self.finite_trials for name in trial.params))

    def explain_no_values(self) -> str:
        """Return a sentence that explains why there are no complete trials with finite values."""
        if not self.trials:
            return "The study has no trial yet."
        if self.with_state(TrialState.COMPLETE):
            return "No complete trial has a finite value."
        return f"No trial is complete yet: there are {self.describe_states()}."

    def describe_states(self) -> str:
        """Return the number of trials in each state that occurs, as in "3 complete, 1 failed"."""
        counts = {state: len(self.with_state(state)) for state in STATE_NAMES}
        return ", ".join(f"{count} {STATE_NAMES[state]}" for state, count in counts.items() if count)

    def as_study(
        self, objective: int | None = None, *, max_trials: int | None = None, finite: bool = True
    ) -> optuna.Study:
        """Return a study in memory for Optuna's plots, without text that a browser would interpret as HTML.

        Args:
            objective: the only objective to keep; `None` for all.
            max_trials: the number of best finite trials to keep, with new numbers; `None` for all trials.
            finite: whether to mark complete trials with other values as failed.
        """
        trials, directions = self.trials, list(self.directions)
        if max_trials is not None and len(self.finite_trials) > max_trials:
            sign = -1 if directions[objective or 0].name == "MAXIMIZE" else 1
            best = sorted(self.finite_trials, key=lambda trial: sign * trial.values[objective or 0])
            trials = sorted(best[:max_trials], key=lambda trial: trial.number)
        storage = optuna.storages.InMemoryStorage()
        kept = directions if objective is None else [directions[objective]]
        key = storage.create_new_study(kept, self.name)
        for trial in trials:
            # Study.add_trial rejects an enqueued value outside of the range of its parameter, which Optuna stores.
            storage.create_new_trial(key, _as_drawable(trial, objective, finite=finite))
        study = optuna.load_study(study_name=self.name, storage=storage)
        if len(kept) > 1:  # Experimental, and not needed for one objective, whose name the plots get.
            study.set_metric_names([as_label(name) for name in self.objectives])
        return study


def is_finite(trial: FrozenTrial) -> bool:
    """Return whether a trial has values, and all of them are finite."""
    return trial.values is not None and all(map(math.isfinite, trial.values))


def _as_drawable(trial: FrozenTrial, objective: int | None, *, finite: bool) -> FrozenTrial:
    drawable = copy.copy(trial)
    drawable.user_attrs = {}
    drawable.params = {as_label(name): as_label(value) for name, value in trial.params.items()}
    drawable.distributions = {
        as_label(name): CategoricalDistribution([as_label(choice) for choice in domain.choices])
        if isinstance(domain, CategoricalDistribution)
        else domain
        for name, domain in trial.distributions.items()
    }
    if finite and trial.state is TrialState.COMPLETE and not is_finite(trial):
        drawable.state, drawable.values = TrialState.FAIL, None
    elif objective is not None and trial.values is not None and len(trial.values) > objective:
        drawable.values = [trial.values[objective]]
    return drawable


def as_label(value: Any) -> Any:
    """Return a string escaped for plotly's labels, which are HTML; other values unchanged."""
    return html.escape(value, quote=False) if isinstance(value, str) else value


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Suppress Optuna's warnings about plots, which the page explains, and its log of the studies in memory."""
    loggers = [logging.getLogger(name) for name in ("optuna.visualization", "optuna.storages")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# ------------------------------------------------------------------------------------------------------------- storage


@contextlib.contextmanager
def open_study(study_or_url: optuna.Study | str, study_name: str | None) -> Iterator[optuna.Study]:
    """Yield a study, which is loaded if the URL of its storage is given.

    Args:
        study_or_url: a study, or the URL of an RDB storage.
        study_name: the name of the study; not needed if the storage has a single study.

    Raises:
        ArgumentTypeError: if the argument is neither a study nor a string.
        ConfigurationError: if it is not a URL, if there is no database or no study, or if a name is needed.
        UnknownNameError: if the storage has no study of this name.
        StudyStorageError: if the database cannot be read.
    """
    if isinstance(study_or_url, optuna.Study):
        if study_name not in (None, study_or_url.study_name):
            raise ConfigurationError(
                f"study_name={study_name!r} with the study {study_or_url.study_name!r}: pass one of them, not both"
            )
        yield study_or_url
        return
    if not isinstance(study_or_url, str):
        raise ArgumentTypeError(
            f"study_or_url has the type {type(study_or_url).__name__}: pass a study, or a URL such as 'sqlite:///study.db'"
        )
    url = _ensure_database(study_or_url)
    with storage_errors():
        storage = optuna.storages.RDBStorage(study_or_url)
    try:
        with storage_errors():
            study = optuna.load_study(study_name=_choose(storage, show_url(url), study_name), storage=storage)
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _ensure_database(storage: str) -> sqlalchemy.URL:
    # SQLite creates a missing file, so that a wrong path would give an empty report.
    url = parse_url(storage)
    if url.get_backend_name() != "sqlite" or "uri" in url.query:
        return url
    if not url.database or not Path(url.database).is_file():
        raise ConfigurationError(
            f"{show_url(url)}: there is no database {url.database!r}: pass the path of one, after sqlite:///"
        )
    return url


def _choose(storage: optuna.storages.RDBStorage, shown: str, study_name: str | None) -> str:
    names = optuna.get_all_study_names(storage)
    if study_name is not None:
        if study_name not in names:
            raise UnknownNameError(f"{shown} holds no study {study_name!r}: there are {names}")
        return study_name
    if not names:
        raise ConfigurationError(f"{shown} holds no study: pass the URL of the study's storage")
    if len(names) > 1:
        raise ConfigurationError(f"{shown} holds {len(names)} studies: choose one of them with study_name=: {names}")
    return names[0]
