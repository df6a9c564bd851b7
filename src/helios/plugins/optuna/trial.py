"""`RemoteTrial`, which represents a trial in processes other than its own, and the calls that it can make."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import optuna

from helios.errors import UnknownNameError
from helios.plugins.optuna.optuna_internals import trial_id_of
from helios.plugins.optuna.pruning import ask_pruner
from helios.plugins.optuna.shared_trial import SharedTrial
from helios.ranks.object_host import call_host, register_proxy

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Sequence

    from optuna.distributions import BaseDistribution

_CALLS: Final = frozenset(
    ("report", "set_user_attr", "should_prune", "suggest_categorical", "suggest_float", "suggest_int")
)
_READS: Final = frozenset(("datetime_start", "distributions", "params", "relative_params", "user_attrs"))


class RemoteTrial:
    """A trial of another process: every call is made there.

    The first rank that suggests a parameter has the sampler draw its value; all other ranks get the same value.

    Args:
        host_id: the number under which the object host of that process knows the trial.
        number: the trial's number in its study.
    """

    def __init__(self, host_id: int, number: int) -> None:
        self._host_id = host_id
        self._number = number

    def __repr__(self) -> str:
        return f"{type(self).__name__}(number={self._number})"

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self._number

    @property
    def params(self) -> dict[str, Any]:
        """The values that were suggested so far, by name."""
        params: dict[str, Any] = self.ask("params")
        return params

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distributions of these values, by name."""
        distributions: dict[str, BaseDistribution] = self.ask("distributions")
        return distributions

    @property
    def relative_params(self) -> dict[str, Any]:
        """The parameters that the sampler draws jointly."""
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
        """Make a call in the process of the trial, and return its result."""
        return call_host(self._host_id, name, *arguments, **options)


def original_number(trial: Any) -> int:
    """Return a trial's number; for the retry of a trial, the number of the first attempt."""
    if isinstance(trial, RemoteTrial):
        number: int = trial.ask("original_number")
        return number
    frozen = _frozen(trial)
    return int(trial.number if frozen is None else frozen.system_attrs.get("failed_trial", trial.number))


def intermediate_values(trial: Any) -> dict[int, float]:
    """Return the values that were reported to a trial, by step; empty for a trial without a storage."""
    if isinstance(trial, RemoteTrial):
        values: dict[int, float] = trial.ask("intermediate_values")
        return values
    frozen = _frozen(trial)
    return {} if frozen is None else dict(frozen.intermediate_values)


def is_pruned_at(trial: Any, step: int) -> bool:
    """Return whether a trial should be pruned, given its reports up to this step; see `ask_pruner`."""
    return bool(trial.ask("is_pruned_at", step)) if isinstance(trial, RemoteTrial) else ask_pruner(trial, step)


def _frozen(trial: Any) -> optuna.trial.FrozenTrial | None:
    """Return the state of a trial in its storage; `None` if it has no storage."""
    return trial.storage.get_trial(trial_id_of(trial)) if isinstance(trial, optuna.Trial) else None


def _record(trial: optuna.Trial, space: Any) -> None:  # `space` is a SearchSpace, whose module imports this one.
    space.ensure_recorded(trial)


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "original_number": original_number,
    "intermediate_values": intermediate_values,
    "is_pruned_at": is_pruned_at,
    "record": _record,
}


def _answer(trial: optuna.Trial, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Make a call of a `RemoteTrial` here, in the process of the trial."""
    with trial.locked() if isinstance(trial, SharedTrial) else contextlib.nullcontext():
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](trial, *arguments, **options)
        if name in _READS:
            return getattr(trial, name)
        if name in _CALLS:
            return getattr(trial, name)(*arguments, **options)
    raise UnknownNameError(f"a trial cannot be asked for {name!r}: there are {sorted({*_CALLS, *_READS, *_FUNCTIONS})}")


register_proxy(optuna.Trial, lambda trial, host_id: (RemoteTrial, (host_id, trial.number)), _answer)
