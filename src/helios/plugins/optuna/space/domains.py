"""The domains of parameters: a range of floats, a range of integers, or a list of choices."""

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
    """The methods of a trial that a search space calls; `optuna.Trial` and `RemoteTrial` have them."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = ..., log: bool = ...) -> float:
        """Return a float between the bounds, both included."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = ..., log: bool = ...) -> int:
        """Return an integer between the bounds, both included."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of the choices."""


class Domain(ABC):
    """The possible values of a parameter."""

    kind: ClassVar[str]

    @abstractmethod
    def suggest(self, trial: Suggester, name: str) -> Value:
        """Have the trial suggest a value."""

    @abstractmethod
    def reject_reason(self, value: object) -> str | None:
        """Return why no trial can have this value, or `None` if one can."""

    @abstractmethod
    def index(self, value: Any) -> float:
        """Return the position of a value in the order of the domain; equal values have the same position."""

    @abstractmethod
    def normalize(self, value: Any) -> Value:
        """Return the form of a possible value that the domain itself uses."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the definition without the keys that have their default."""

    @abstractmethod
    def __str__(self) -> str:
        """Return a short description."""


@dataclasses.dataclass(frozen=True)
class FloatRange(Domain):
    """Floats from `low` to `high`, both included; with a step only multiples of it above `low`."""

    kind: ClassVar[str] = "float"
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def suggest(self, trial: Suggester, name: str) -> float:
        """Have the trial suggest a float."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def reject_reason(self, value: object) -> str | None:
        """Reject values outside of the range or between two steps, and without a step every single value."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"it is {type_name(value)}, not a float"
        if not self.low <= value <= self.high:
            return f"it is outside of {self.low!r} to {self.high!r}"
        if self.step is None and self.low < self.high:
            return "a range without a step never has exactly this value: define a step, or a categorical parameter"
        if self.step is not None and not _is_whole((value - self.low) / self.step):
            return f"it is not {self.low!r} plus a multiple of {self.step!r}"
        return None

    def index(self, value: Any) -> float:
        """Return the number of the step, which is the same for 0.1 + 0.2 and 0.3."""
        return float(value) if self.step is None else round((value - self.low) / self.step)

    def normalize(self, value: Any) -> float:
        """Return a float."""
        return float(value)

    def to_dict(self) -> dict[str, Any]:
        """Return kind and bounds, and step and log if they are set."""
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
        """Have the trial suggest an integer."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def reject_reason(self, value: object) -> str | None:
        """Reject values that are not integers, are outside of the range, or are between two steps."""
        if isinstance(value, bool) or not isinstance(value, int):
            return f"it is {type_name(value)}, not an integer"
        if not self.low <= value <= self.high:
            return f"it is outside of {self.low} to {self.high}"
        return f"it is not {self.low} plus a multiple of {self.step}" if (value - self.low) % self.step else None

    def index(self, value: Any) -> float:
        """Return the integer itself."""
        return int(value)

    def normalize(self, value: Any) -> int:
        """Return the integer itself."""
        return int(value)

    def to_dict(self) -> dict[str, Any]:
        """Return kind and bounds, and step and log if they are set."""
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
        """Have the trial suggest a choice."""
        chosen: Value = trial.suggest_categorical(name, self.choices)
        return chosen

    def reject_reason(self, value: object) -> str | None:
        """Reject values that are not among the choices; 1 and True are different values here."""
        if any(choice == value and isinstance(choice, bool) == isinstance(value, bool) for choice in self.choices):
            return None
        return f"it is not among the choices {quote(self.choices)}"

    def index(self, value: Any) -> float:
        """Return the position among the choices."""
        return self.choices.index(value)

    def normalize(self, value: Any) -> Value:
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
        name: its name in the trial.
        domain: its possible values.
        when: for each parameter that it depends on, the values of that parameter with which this one exists.
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
