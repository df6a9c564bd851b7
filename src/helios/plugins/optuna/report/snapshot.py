"""A study as it was at one moment: what the report is drawn from."""

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

WORDS: Final = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The facts of a study, read once, so that every picture shows the same moment.

    Args:
        name: the study's.
        directions: one for each objective.
        objectives: the names of the objectives.
        trials: all of them, by number.
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
        """The best trial, or the Pareto front if there are several objectives; empty as long as no trial counts."""
        study = self.as_study()
        if len(self.directions) > 1:
            return [self.trials[number] for number in sorted(trial.number for trial in study.best_trials)]
        # Where no trial is complete and feasible, Optuna raises.
        with contextlib.suppress(ValueError):
            return [self.trials[study.best_trial.number]]
        return []

    def with_state(self, *states: TrialState) -> list[FrozenTrial]:
        """Return the trials in one of these states."""
        return [trial for trial in self.trials if trial.state in states]

    @functools.cached_property
    def judged(self) -> list[FrozenTrial]:
        """The complete trials all of whose values are finite."""
        return [trial for trial in self.with_state(TrialState.COMPLETE) if is_finite(trial)]

    @functools.cached_property
    def parameters(self) -> list[str]:
        """The names of the parameters that any of those trials had, in the order of their appearance."""
        return list(dict.fromkeys(name for trial in self.judged for name in trial.params))

    def say_why_nothing_is_judged(self) -> str:
        """Return a sentence for where a complete trial is needed, and there is none."""
        if not self.trials:
            return "The study has no trial yet."
        if self.with_state(TrialState.COMPLETE):
            return "No complete trial has a finite value."
        return f"No trial is complete yet: there are {self.say_states()}."

    def say_states(self) -> str:
        """Return how many trials are in each state that occurs, as in "3 complete, 1 failed"."""
        counts = {state: len(self.with_state(state)) for state in WORDS}
        return ", ".join(f"{count} {WORDS[state]}" for state, count in counts.items() if count)

    def as_study(self, objective: int | None = None, *, most: int | None = None, finite: bool = True) -> optuna.Study:
        """Return a study in memory that Optuna can draw, without text that a browser would take for HTML.

        Args:
            objective: the only one to keep, if not all.
            most: how many of the judged trials to keep, the best ones, if not all trials. Numbers change then.
            finite: whether complete trials with other values shall be failed ones.
        """
        trials, directions = self.trials, list(self.directions)
        if most is not None and len(self.judged) > most:
            sign = -1 if directions[objective or 0].name == "MAXIMIZE" else 1
            best = sorted(self.judged, key=lambda trial: sign * trial.values[objective or 0])
            trials = sorted(best[:most], key=lambda trial: trial.number)
        storage = optuna.storages.InMemoryStorage()
        kept = directions if objective is None else [directions[objective]]
        key = storage.create_new_study(kept, self.name)
        for trial in trials:
            # Study.add_trial refuses what Optuna itself stores when a trial was enqueued with odd values.
            storage.create_new_trial(key, _as_drawable(trial, objective, finite=finite))
        study = optuna.load_study(study_name=self.name, storage=storage)
        if len(kept) > 1:  # With one, figures are given its name; and this warns of being experimental.
            study.set_metric_names([as_label(name) for name in self.objectives])
        return study


def is_finite(trial: FrozenTrial) -> bool:
    """Whether a trial has values, and all of them are finite."""
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
    """Return a string so that plotly, whose labels are a kind of HTML, shows it as it is; other values as they are."""
    return html.escape(value, quote=False) if isinstance(value, str) else value


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from warning of what the page says in words, and from logging the studies made to be drawn."""
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
    """Give a study, found by the URL of its storage where that is what was given.

    Args:
        study_or_url: a study, or the URL of an RDB storage.
        study_name: which of the storage's studies; not needed if there is one alone.

    Raises:
        ArgumentTypeError: if it is neither a study nor a string.
        ConfigurationError: if it is no URL, if there is no database or no study, or if a name is needed.
        UnknownNameError: if the storage has no study of this name.
        StudyStorageError: if the database cannot be read.
    """
    if isinstance(study_or_url, optuna.Study):
        if study_name not in (None, study_or_url.study_name):
            raise ConfigurationError(
                f"study_name={study_name!r} with the study {study_or_url.study_name!r}: give one of them, not both"
            )
        yield study_or_url
        return
    if not isinstance(study_or_url, str):
        raise ArgumentTypeError(
            f"study_or_url is a {type(study_or_url).__name__}: give a study, or a URL like 'sqlite:///study.db'"
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
    # Opening a database of SQLite makes it, and somebody who mistyped its name would get the report of nothing.
    url = parse_url(storage)
    if url.get_backend_name() != "sqlite" or "uri" in url.query:
        return url
    if not url.database or not Path(url.database).is_file():
        raise ConfigurationError(
            f"{show_url(url)}: there is no database {url.database!r}: give the path of one, after sqlite:///"
        )
    return url


def _choose(storage: optuna.storages.RDBStorage, shown: str, study_name: str | None) -> str:
    names = optuna.get_all_study_names(storage)
    if study_name is not None:
        if study_name not in names:
            raise UnknownNameError(f"{shown} holds no study {study_name!r}: there are {names}")
        return study_name
    if not names:
        raise ConfigurationError(f"{shown} holds no study: give the URL of the storage that the study was made with")
    if len(names) > 1:
        raise ConfigurationError(f"{shown} holds {len(names)} studies: choose one of them with study_name=: {names}")
    return names[0]
