"""What stands in for a trial in processes other than the one it lives in."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Final, cast

import optuna

from helios.errors import UnknownNameError
from helios.plugins.optuna.storage.questions import ask_pruner
from helios.ranks.object_host import call_host, register_proxy

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator, Sequence

    from optuna.distributions import BaseDistribution

_CALLS: Final = frozenset(
    ("report", "set_user_attr", "should_prune", "suggest_categorical", "suggest_float", "suggest_int")
)
_READS: Final = frozenset(("datetime_start", "distributions", "params", "relative_params", "user_attrs"))


class TrialStandIn:
    """A trial that lives in another process, where every question is answered: one trial, whoever asks.

    The sampler is asked once for each parameter, by whichever rank comes first; all others are given what it answered.

    Args:
        home: the number of the trial in the process that it lives in.
        number: the trial's number in its study.
    """

    def __init__(self, home: int, number: int) -> None:
        self._object_host = home
        self._number = number

    def __repr__(self) -> str:
        return f"{type(self).__name__}(number={self._number})"

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self._number

    @property
    def params(self) -> dict[str, Any]:
        """What has been suggested so far, by name."""
        params: dict[str, Any] = self.ask("params")
        return params

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """What the values so far were drawn from, by name."""
        distributions: dict[str, BaseDistribution] = self.ask("distributions")
        return distributions

    @property
    def relative_params(self) -> dict[str, Any]:
        """What the sampler has drawn together, before anything was asked for."""
        params: dict[str, Any] = self.ask("relative_params")
        return params

    @property
    def user_attrs(self) -> dict[str, Any]:
        """The trial's user attributes."""
        attributes: dict[str, Any] = self.ask("user_attrs")
        return attributes

    @property
    def datetime_start(self) -> datetime.datetime | None:
        """When the trial was started."""
        start: datetime.datetime | None = self.ask("datetime_start")
        return start

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a float, as `optuna.Trial.suggest_float` does."""
        value: float = self.ask("suggest_float", name, low, high, step=step, log=log)
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Suggest an integer, as `optuna.Trial.suggest_int` does."""
        value: int = self.ask("suggest_int", name, low, high, step=step, log=log)
        return value

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest one of several values, as `optuna.Trial.suggest_categorical` does."""
        return self.ask("suggest_categorical", name, choices)

    def report(self, value: float, step: int) -> None:
        """Report a value, as `optuna.Trial.report` does."""
        self.ask("report", value, step)

    def should_prune(self) -> bool:
        """Ask the pruner, as `optuna.Trial.should_prune` does."""
        return bool(self.ask("should_prune"))

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute, as `optuna.Trial.set_user_attr` does."""
        self.ask("set_user_attr", key, value)

    def ask(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Ask the trial where it lives."""
        return call_host(self._object_host, name, *arguments, **options)


class SharedTrial(optuna.Trial):
    """A trial that its own process and others use at the same time.

    Optuna's trials expect one user: two that suggest the same parameter at once would both consult the sampler. And a
    sampler is shown the trials as each thread has first seen them, which for a thread that serves many trials is long
    ago: whichever thread suggests, it is shown what the trial's own one would be.
    """

    def take_over(self) -> None:
        """Begin with what this thread's sampler was shown when it made the trial."""
        self.turn = threading.RLock()
        self._is_drawing = False
        self._cache = self.study._thread_local  # noqa: SLF001 - optuna has no public way to what a sampler is shown.
        self._seen: list[optuna.trial.FrozenTrial] | None = self._cache.cached_all_trials

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        with self.turn:
            if self._is_drawing:
                yield  # One draw takes another one.
                return
            self._is_drawing, self._cache.cached_all_trials = True, self._seen
            try:
                yield
            finally:
                self._is_drawing, self._seen = False, self._cache.cached_all_trials

    @property
    def relative_params(self) -> dict[str, Any]:
        """What the sampler draws together."""
        with self._drawing():
            return super().relative_params

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        with self._drawing():
            return super()._suggest(name, distribution)

    def report(self, value: float, step: int) -> None:
        """Report a value."""
        with self.turn:
            super().report(value, step)

    def should_prune(self) -> bool:
        """Ask the pruner."""
        with self.turn:
            return super().should_prune()

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute."""
        with self.turn:
            super().set_user_attr(key, value)


def share(trial: optuna.Trial) -> None:
    """Let several threads use a trial, in its place: whoever holds it shall not notice."""
    shared = cast("SharedTrial", trial)
    shared.__class__ = SharedTrial
    shared.take_over()


def original_number(trial: Any) -> int:
    """Return a trial's number; for a retried trial, that of the trial which was run first."""
    if isinstance(trial, TrialStandIn):
        number: int = trial.ask("original_number")
        return number
    frozen = _frozen(trial)
    return int(trial.number if frozen is None else frozen.system_attrs.get("failed_trial", trial.number))


def intermediate_values(trial: Any) -> dict[int, float]:
    """Return what has been reported to a trial, by step; empty for one that has no storage."""
    if isinstance(trial, TrialStandIn):
        values: dict[int, float] = trial.ask("intermediate_values")
        return values
    frozen = _frozen(trial)
    return {} if frozen is None else dict(frozen.intermediate_values)


def is_pruned_at(trial: Any, step: int) -> bool:
    """Return whether a trial shall be pruned, as of the report at this step; see `ask_pruner`."""
    return bool(trial.ask("is_pruned_at", step)) if isinstance(trial, TrialStandIn) else ask_pruner(trial, step)


def _frozen(trial: Any) -> optuna.trial.FrozenTrial | None:
    """Return the trial as the storage has it; `None` if it has no storage."""
    if not isinstance(trial, optuna.Trial):
        return None
    return trial.storage.get_trial(trial._trial_id)  # noqa: SLF001 - optuna has no public way to a single trial.


def _record(trial: optuna.Trial, space: Any) -> None:  # A SearchSpace, whose room imports this one.
    space.ensure_recorded(trial)


_OURS: Final[dict[str, Callable[..., Any]]] = {
    "original_number": original_number,
    "intermediate_values": intermediate_values,
    "is_pruned_at": is_pruned_at,
    "record": _record,
}


def _answer(trial: optuna.Trial, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Answer what a stand-in asks."""
    with trial.turn if isinstance(trial, SharedTrial) else contextlib.nullcontext():
        if name in _OURS:
            return _OURS[name](trial, *arguments, **options)
        if name in _READS:
            return getattr(trial, name)
        if name in _CALLS:
            return getattr(trial, name)(*arguments, **options)
    raise UnknownNameError(f"a trial cannot be asked for {name!r}: there are {sorted({*_CALLS, *_READS, *_OURS})}")


register_proxy(optuna.Trial, lambda trial, home: (TrialStandIn, (home, trial.number)), _answer)
