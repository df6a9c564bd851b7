"""Checks of the arguments of `run_study` and `resume_study`, before a database is opened."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from helios.errors import ArgumentTypeError, ConfigurationError, MissingArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT: Final = (TrialState.COMPLETE, TrialState.PRUNED)
_LONGEST_NAME: Final = 512  # The length of the column in Optuna's tables.


def check_study_args(study_args: object) -> Mapping[str, Any]:
    """Check the arguments of `optuna.create_study` for a study that can be resumed, and return them.

    Raises:
        ArgumentTypeError: if they are not a mapping, or one of them has the wrong type.
        ConfigurationError: if one of them is unknown, or the study's name is invalid.
        MissingArgumentError: if `load_if_exists` is not true.
    """
    if not isinstance(study_args, Mapping):
        raise ArgumentTypeError(
            f"study_args is {study_args!r}, a {type(study_args).__name__}: pass a dict of the arguments of "
            "optuna.create_study"
        )
    known = list(inspect.signature(optuna.create_study).parameters)
    unknown = [name for name in study_args if name not in known]
    if unknown:
        raise ConfigurationError(
            f"study_args has {unknown}, which optuna.create_study does not take: there are {known}"
        )
    storage = study_args.get("storage")
    if not isinstance(storage, str):
        raise ArgumentTypeError(
            f"storage is a {type(storage).__name__}: pass the URL of a database, such as 'sqlite:///study.db'"
        )
    if not study_args.get("load_if_exists"):
        raise MissingArgumentError("study_args lacks load_if_exists=True: without it no existing study is loaded")
    if study_args.get("study_name") is not None:
        _check_study_name(study_args["study_name"])
    for name, kind in (("sampler", BaseSampler), ("pruner", BasePruner)):
        part = study_args.get(name)
        if part is not None and not isinstance(part, kind):
            raise ArgumentTypeError(f"{name} is {part!r}, a {type(part).__name__}: pass an Optuna {name}, or None")
    return study_args


def _check_study_name(name: object) -> None:
    if not isinstance(name, str):
        raise ArgumentTypeError(f"study_name is {name!r}, a {type(name).__name__}: pass a string")
    try:
        is_text = "\0" not in name and bool(name.encode())
    except UnicodeEncodeError:  # An unpaired surrogate.
        is_text = False
    if not is_text or len(name) > _LONGEST_NAME:
        raise ConfigurationError(f"study_name is {name!r}: pass a name of 1 to {_LONGEST_NAME} characters, without NUL")


def check_failed_states(failed_states: object) -> tuple[TrialState, ...]:
    """Return the states that count as failed as a tuple, also for a single state.

    Raises:
        ArgumentTypeError: if there is a value that is not a state.
        ConfigurationError: if there is a state of finished trials.
    """
    states = (failed_states,) if isinstance(failed_states, TrialState) else failed_states
    if not isinstance(states, Collection) or isinstance(states, str | bytes | Mapping):
        raise ArgumentTypeError(f"failed_states is {states!r}: pass states, such as (optuna.trial.TrialState.FAIL,)")
    for state in states:
        if not isinstance(state, TrialState):
            raise ArgumentTypeError(f"failed_states holds {state!r}: pass states, such as optuna.trial.TrialState.FAIL")
        if state in _KEPT:
            raise ConfigurationError(f"failed_states holds {state.name}: finished trials are kept; leave it out")
    return tuple(states)


def check_flag(name: str, value: object) -> None:
    """Check that an argument is a bool: a string such as "no" would count as true.

    Raises:
        ArgumentTypeError: if not.
    """
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{name} is {value!r}, a {type(value).__name__}: pass True or False")


def check_callables(make_study: object, objective: object) -> None:
    """Check that both arguments are callable.

    Raises:
        ArgumentTypeError: if not.
    """
    for name, call, example in (
        ("make_study", make_study, "a function that returns the study, such as lambda: optuna.create_study(...)"),
        ("objective", objective, "a function of a trial that returns its value"),
    ):
        if not callable(call):
            raise ArgumentTypeError(f"{name} is {call!r}, a {type(call).__name__}: pass {example}")


def checked_study(make_study: Callable[[], object]) -> Callable[[], optuna.Study]:
    """Return a function that calls `make_study` and checks that it returns a study.

    Raises:
        ArgumentTypeError: when the function is called, if `make_study` returns another type.
    """

    def make() -> optuna.Study:
        study = make_study()
        if not isinstance(study, optuna.Study):
            raise ArgumentTypeError(
                f"make_study returned {study!r}, a {type(study).__name__}: return the study, as "
                "optuna.create_study does"
            )
        return study

    return make


def check_values(values: object, trial: optuna.Trial, count: int) -> bool:
    """Check the return value of an objective, and return whether the trial can be complete, that is, without nan.

    Args:
        values: the return value.
        trial: the trial.
        count: the number of objectives of the study.

    Raises:
        ArgumentTypeError: if it is not a number, or not one number for each objective.
    """
    is_sequence = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    each = list(values) if is_sequence else [values]  # type: ignore[call-overload]  # a sequence
    numbers = [_to_float(value) for value in each]
    if len(numbers) != count or any(number is None for number in numbers):
        wanted = "a number" if count == 1 else f"{count} numbers, one for each objective of the study"
        raise ArgumentTypeError(f"the objective returned {values!r} for trial {trial.number}: return {wanted}")
    return not any(math.isnan(number) for number in numbers if number is not None)


def _to_float(value: Any) -> float | None:
    if isinstance(value, str | bytes):  # Optuna's checks accept "1.5", and its storage then fails.
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # For example for a tensor with several elements.
        return None
