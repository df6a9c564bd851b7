"""What a parameter of a search space may be: a range of floats, a range of integers, or a list of choices."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from helios.plugins.optuna.space.errors import quote, type_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Value = None | bool | int | float | str


class Suggester(Protocol):
    """What a search space asks of a trial: Optuna's own trials have it, and so has any stand-in for one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = ..., log: bool = ...) -> float:
        """Return a float between the bounds, both included."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = ..., log: bool = ...) -> int:
        """Return an integer between the bounds, both included."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""


class Domain(ABC):
    """The values that a parameter may have."""

    kind: ClassVar[str]

    @abstractmethod
    def suggest(self, trial: Suggester, name: str) -> Value:
        """Let the trial choose a value."""

    @abstractmethod
    def refuse(self, value: object) -> str | None:
        """Return why no trial ever has this value, or `None` if one may have it."""

    @abstractmethod
    def place(self, value: Any) -> float:
        """Return the place of a value in the domain's own order; values that are the same have the same place."""

    @abstractmethod
    def as_own(self, value: Any) -> Value:
        """Return a value that is not refused as the domain itself writes it."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the definition in its shortest form: what is as by default is left out."""

    @abstractmethod
    def __str__(self) -> str:
        """Return a few words to read."""


@dataclasses.dataclass(frozen=True)
class FloatRange(Domain):
    """Floats from `low` to `high`, both included; with a step only multiples of it above `low`."""

    kind: ClassVar[str] = "float"
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def suggest(self, trial: Suggester, name: str) -> float:
        """Let the trial choose a float."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def refuse(self, value: object) -> str | None:
        """Refuse what lies outside or between two steps, and without steps what has the probability 0."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"it is {type_name(value)}, not a float"
        if not self.low <= value <= self.high:
            return f"it lies outside of {self.low!r} to {self.high!r}"
        if self.step is None and self.low < self.high:
            return "no float of a range without a step is ever hit exactly: give it a step, or make it categorical"
        if self.step is not None and not _is_whole((value - self.low) / self.step):
            return f"it is not {self.low!r} plus a multiple of {self.step!r}"
        return None

    def place(self, value: Any) -> float:
        """Return the number of the step, so that 0.1 + 0.2 is where 0.3 is."""
        return float(value) if self.step is None else round((value - self.low) / self.step)

    def as_own(self, value: Any) -> float:
        """Return a float."""
        return float(value)

    def to_dict(self) -> dict[str, Any]:
        """Return kind and bounds, and step and log where they are used."""
        return _range_to_dict(self, self.step)

    def __str__(self) -> str:
        """Return "float 0.1 to 1.0, log"."""
        return _describe_range(self, self.step)


@dataclasses.dataclass(frozen=True)
class IntRange(Domain):
    """Integers from `low` to `high`, both included; with a step only multiples of it above `low`."""

    kind: ClassVar[str] = "int"
    low: int
    high: int
    step: int = 1
    log: bool = False

    def suggest(self, trial: Suggester, name: str) -> int:
        """Let the trial choose an integer."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def refuse(self, value: object) -> str | None:
        """Refuse what is no integer, lies outside, or between two steps."""
        if isinstance(value, bool) or not isinstance(value, int):
            return f"it is {type_name(value)}, not an integer"
        if not self.low <= value <= self.high:
            return f"it lies outside of {self.low} to {self.high}"
        return f"it is not {self.low} plus a multiple of {self.step}" if (value - self.low) % self.step else None

    def place(self, value: Any) -> float:
        """Return the integer itself."""
        return int(value)

    def as_own(self, value: Any) -> int:
        """Return the integer itself."""
        return int(value)

    def to_dict(self) -> dict[str, Any]:
        """Return kind and bounds, and step and log where they are used."""
        return _range_to_dict(self, None if self.step == 1 else self.step)

    def __str__(self) -> str:
        """Return "int 1 to 9, step 2"."""
        return _describe_range(self, None if self.step == 1 else self.step)


@dataclasses.dataclass(frozen=True)
class Choices(Domain):
    """One of several values."""

    kind: ClassVar[str] = "categorical"
    choices: tuple[Value, ...]

    def suggest(self, trial: Suggester, name: str) -> Value:
        """Let the trial choose one."""
        chosen: Value = trial.suggest_categorical(name, self.choices)
        return chosen

    def refuse(self, value: object) -> str | None:
        """Refuse what is not among the choices; 1 is not true here."""
        if any(choice == value and isinstance(choice, bool) == isinstance(value, bool) for choice in self.choices):
            return None
        return f"it is not among the choices {quote(self.choices)}"

    def place(self, value: Any) -> float:
        """Return the position among the choices."""
        return self.choices.index(value)

    def as_own(self, value: Any) -> Value:
        """Return the choice that equals the value."""
        return self.choices[self.choices.index(value)]

    def to_dict(self) -> dict[str, Any]:
        """Return kind and choices."""
        return {"kind": self.kind, "choices": list(self.choices)}

    def __str__(self) -> str:
        """Return "one of [...]"."""
        return f"one of {quote(self.choices)}"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter of a search space.

    Args:
        name: what the trial knows it by.
        domain: the values it may have.
        when: for each parameter that it depends on, the values of that one with which it exists.
    """

    name: str
    domain: Domain
    when: Mapping[str, tuple[Value, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Return the definition in its shortest form."""
        definition = self.domain.to_dict()
        if self.when:
            definition["when"] = {
                parent: values[0] if len(values) == 1 else list(values) for parent, values in self.when.items()
            }
        return definition

    def __str__(self) -> str:
        """Return "momentum: float 0.0 to 0.9, when optimizer = "sgd""."""
        conditions = [
            f"{parent} = {' or '.join(quote(value) for value in values)}" for parent, values in self.when.items()
        ]
        return f"{self.name}: {self.domain}" + (f", when {' and '.join(conditions)}" if conditions else "")


def _range_to_dict(domain: FloatRange | IntRange, step: float | None) -> dict[str, Any]:
    definition: dict[str, Any] = {"kind": domain.kind, "low": domain.low, "high": domain.high}
    if step is not None:
        definition["step"] = step
    if domain.log:
        definition["log"] = True
    return definition


def _describe_range(domain: FloatRange | IntRange, step: float | None) -> str:
    text = f"{domain.kind} {domain.low!r} to {domain.high!r}"
    return text + ("" if step is None else f", step {step!r}") + (", log" if domain.log else "")


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), rel_tol=1e-9, abs_tol=1e-9)
