"""`SharedTrial`, a trial that several threads use at the same time."""

from __future__ import annotations

import contextlib
import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar, cast

import optuna

from helios.plugins.optuna.optuna_internals import cached_trials, set_cached_trials

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator

    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

_Method = TypeVar("_Method", bound="Callable[..., Any]")


def _locked(method: _Method) -> _Method:
    """Return a method that calls the one of this name of the wrapped trial under the lock."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: SharedTrial, *args: Any, **kwargs: Any) -> Any:
        with self.locked() as trial:
            return getattr(trial, name)(*args, **kwargs)

    return cast("_Method", call)


class SharedTrial(optuna.Trial):
    """A trial that wraps another one and lets one thread at a time call it.

    Optuna's trials are made for one thread: two threads that suggest the same parameter at the same time would both ask
    the sampler. And Optuna shows a sampler the trials that had finished when the calling *thread* first asked for them,
    which is long ago in a thread that serves one trial after another. Here the sampler sees the same trials in every
    thread.

    Args:
        trial: the trial; the calling thread must be the one that created it.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        # Without Optuna's constructor, in which the sampler would prepare the trial a second time.
        self._trial = trial
        self._lock = threading.RLock()
        self._finished_trials = cached_trials(trial.study)

    @contextlib.contextmanager
    def locked(self) -> Iterator[optuna.Trial]:
        """Hold the lock, which is reentrant, and yield the wrapped trial."""
        study = self._trial.study
        with self._lock:
            set_cached_trials(study, self._finished_trials)
            try:
                yield self._trial
            finally:
                self._finished_trials = cached_trials(study)

    def __getattr__(self, name: str) -> Any:
        # The attributes that Optuna's constructor sets, as `study` and `_trial_id`.
        if name == "_trial":  # While the object is being unpickled.
            raise AttributeError(name)
        return getattr(self._trial, name)

    suggest_float = _locked(optuna.Trial.suggest_float)
    suggest_int = _locked(optuna.Trial.suggest_int)
    suggest_categorical = _locked(optuna.Trial.suggest_categorical)
    suggest_uniform = _locked(optuna.Trial.suggest_uniform)
    suggest_loguniform = _locked(optuna.Trial.suggest_loguniform)
    suggest_discrete_uniform = _locked(optuna.Trial.suggest_discrete_uniform)
    report = _locked(optuna.Trial.report)
    should_prune = _locked(optuna.Trial.should_prune)
    set_user_attr = _locked(optuna.Trial.set_user_attr)
    set_constraint = _locked(optuna.Trial.set_constraint)

    @property
    def storage(self) -> BaseStorage:
        """The storage of the trial."""
        return self._trial.storage

    @storage.setter
    def storage(self, storage: BaseStorage) -> None:
        self._trial.storage = storage

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self._trial.number

    @property
    def datetime_start(self) -> datetime.datetime | None:
        """When the trial was started."""
        return self._trial.datetime_start

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that the sampler draws jointly."""
        with self.locked() as trial:
            return trial.relative_params

    @property
    def params(self) -> dict[str, Any]:
        """The values that were suggested so far, by name."""
        with self.locked() as trial:
            return trial.params

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions of these values, by name."""
        with self.locked() as trial:
            return trial.distributions

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The trial's user attributes."""
        with self.locked() as trial:
            return trial.user_attrs

    @property
    def constraints(self) -> dict[str, float]:
        """The trial's constraint values."""
        with self.locked() as trial:
            return trial.constraints
