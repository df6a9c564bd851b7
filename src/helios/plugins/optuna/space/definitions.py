"""Reading and checking the definition of one parameter of a search space."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from helios.plugins.optuna.space.domains import Choices, Domain, FloatRange, IntRange, Value
from helios.plugins.optuna.space.errors import SpaceErrors, did_you_mean, quote, type_name

# Optuna stores every number as a double: a larger integer would be rounded.
_LARGEST_INTEGER: Final = 2**53
# The length of the column in Optuna's tables.
_LONGEST_NAME: Final = 512

_RANGE_KEYS: Final = ("low", "high", "step", "log")
_KEYS: Final = {"float": _RANGE_KEYS, "int": _RANGE_KEYS, "categorical": ("choices",)}
_KINDS: Final = 'kind = "float", kind = "int" or kind = "categorical"'


def read_domain(name: object, definition: object, errors: SpaceErrors) -> Domain | None:
    """Return the domain of a parameter, or `None` if its name or definition has errors.

    Args:
        name: the name of the parameter.
        definition: a mapping with `kind`, the keys of that kind, and optionally `when`, which is not read here.
        errors: all errors are added to it.
    """
    if not isinstance(name, str):
        errors.add(name, f"its name is {type_name(name)}: use a string", of_type=True)
    elif not name or not name.isprintable() or len(name) > _LONGEST_NAME:
        errors.add(name, f"a name has 1 to {_LONGEST_NAME} printable characters: choose another one")
    elif not isinstance(definition, Mapping):
        example = '{ kind = "float", low = 0.0, high = 1.0 }'
        rule = f"{quote(definition)} is {type_name(definition)}: a parameter is a table, as in {name} = {example}"
        errors.add(name, rule, of_type=True)
    else:
        return _Definition(name, definition, errors).read()
    return None


@dataclasses.dataclass(frozen=True)
class _Definition:
    name: str
    table: Mapping[Any, Any]
    errors: SpaceErrors

    def read(self) -> Domain | None:
        kind = self.table.get("kind")
        if "kind" not in self.table:
            self.errors.add(self.name, f"kind is missing: write {_KINDS}")
            return None
        if not isinstance(kind, str):
            self._refuse_type("kind", f"write {_KINDS}")
            return None
        if kind not in _KEYS:
            self.errors.add(self.name, f"kind = {quote(kind)} is unknown: write {_KINDS}{did_you_mean(kind, _KEYS)}")
            return None
        before = len(self.errors)
        keys = ("kind", *_KEYS[kind], "when")
        for key in self.table:
            if key not in keys:
                takes = f"a parameter of this kind takes {', '.join(keys)}"
                self.errors.add(self.name, f"unknown key {quote(key)}: {takes}{did_you_mean(key, keys)}")
        readers = {"float": self._read_float, "int": self._read_int, "categorical": self._read_choices}
        domain = readers[kind]()
        return domain if len(self.errors) == before else None

    def _read_float(self) -> Domain | None:
        low, high = self._read_number("low"), self._read_number("high")
        step = self._read_number("step") if "step" in self.table else None
        log = self._read_flag("log")
        if low is None or high is None:
            return None
        domain = FloatRange(float(low), float(high), None if step is None else float(step), log)
        self._check_range(domain.low, domain.high, domain.step, log=log)
        return domain

    def _read_int(self) -> Domain | None:
        low, high = self._read_integer("low"), self._read_integer("high")
        step = self._read_integer("step") if "step" in self.table else 1
        log = self._read_flag("log")
        if low is None or high is None or step is None:
            return None
        self._check_range(low, high, None if step == 1 else step, log=log)
        return IntRange(low, high, step, log)

    def _read_number(self, key: str) -> float | None:
        value = self.table.get(key)
        if key not in self.table:
            self.errors.add(self.name, f"{key} is missing: a range has a low and a high bound")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse_type(key, "write a number")
        elif not abs(value) <= sys.float_info.max:
            self.errors.add(self.name, f"{key} = {value} is not a finite double: write a finite number")
        else:
            return int(value) if isinstance(value, int) else float(value)
        return None

    def _read_integer(self, key: str) -> int | None:
        value: object = self._read_number(key)
        if isinstance(value, int):
            if abs(value) <= _LARGEST_INTEGER:
                return value
            self.errors.add(
                self.name, f"{key} = {value} is beyond 2**53, where Optuna rounds integers: write a smaller number"
            )
        elif value is not None:
            self._refuse_type(key, 'write an integer, or kind = "float"')
        return None

    def _read_flag(self, key: str) -> bool:
        value = self.table.get(key, False)
        if not isinstance(value, bool):
            self._refuse_type(key, "write true or false")
        return value is True

    def _check_range(self, low: float, high: float, step: float | None, *, log: bool) -> None:
        if low > high:
            self.errors.add(self.name, f"low = {low!r} is above high = {high!r}: swap them")
        elif not math.isfinite(high - low):
            self.errors.add(self.name, f"high - low overflows with low = {low!r} and high = {high!r}: narrow the range")
        elif step is not None and step > 0:
            self._check_steps(low, high, step)
        if step is not None and step <= 0:
            self.errors.add(self.name, f"step = {step!r} is not above 0: write a positive step, or remove it")
        if log and low <= 0:
            self.errors.add(
                self.name, f"low = {low!r} is not above 0, as log = true requires: raise low, or remove log"
            )
        if log and step is not None:
            self.errors.add(self.name, f"step = {step!r} and log = true exclude each other: remove one of them")

    def _check_steps(self, low: float, high: float, step: float) -> None:
        # Optuna computes steps in the same way, but only warns and changes the bound.
        if (high - low) / step > _LARGEST_INTEGER:
            self.errors.add(self.name, f"step = {step!r} is too small for {low!r} to {high!r}: remove it")
            return
        start, distance, width = Decimal(str(low)), Decimal(str(high)) - Decimal(str(low)), Decimal(str(step))
        if distance % width:
            last = type(high)(distance // width * width + start)
            self.errors.add(
                self.name,
                f"high = {high!r} is not low = {low!r} plus a multiple of step = {step!r}: write the last step, "
                f"high = {last!r}, or change the step",
            )

    def _read_choices(self) -> Domain | None:
        choices = self.table.get("choices")
        if "choices" not in self.table:
            self.errors.add(self.name, "choices are missing: write choices = [...] with at least one value")
            return None
        if not isinstance(choices, list | tuple):
            self._refuse_type("choices", "write a list, choices = [...]")
            return None
        if not choices:
            self.errors.add(self.name, "choices = [] is empty: write at least one value")
        plain: list[Value] = []
        for choice in choices:
            if choice is not None and not isinstance(choice, bool | int | float | str):
                rule = "Optuna stores None, booleans, integers, floats and strings: use one of these"
                self.errors.add(self.name, f"choice {quote(choice)} is {type_name(choice)}: {rule}", of_type=True)
            elif isinstance(choice, float) and math.isnan(choice):
                self.errors.add(self.name, 'choice nan equals no value, not even itself: write a string, as in "nan"')
            elif choice in plain:
                twin = plain[plain.index(choice)]
                rule = "Optuna cannot distinguish equal choices: remove one, or write strings"
                self.errors.add(self.name, f"choice {quote(choice)} equals the choice {quote(twin)}: {rule}")
            else:
                plain.append(_as_plain(choice))
        return Choices(tuple(plain))

    def _refuse_type(self, key: str, remedy: str) -> None:
        value = self.table[key]
        self.errors.add(self.name, f"{key} = {quote(value)} is {type_name(value)}: {remedy}", of_type=True)


def _as_plain(value: Value) -> Value:
    # Optuna stores a NumPy float or an enum member as its builtin base type.
    for plain in (str, bool, int, float):
        if isinstance(value, plain):
            return str.__str__(value) if isinstance(value, str) else plain(value)
    return value
