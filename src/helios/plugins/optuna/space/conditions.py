"""The conditions in a search space, which decide whether a parameter exists in a trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from helios.plugins.optuna.space.errors import SpaceErrors, did_you_mean, quote, type_name

if TYPE_CHECKING:
    from helios.plugins.optuna.space.domains import Domain, Parameter, Value


def read_conditions(
    name: str, definition: object, domains: Mapping[str, Domain | None], errors: SpaceErrors
) -> dict[str, tuple[Value, ...]]:
    """Return the conditions of a parameter: for each parameter that it depends on, the values with which it exists.

    Args:
        name: the name of the parameter.
        definition: its definition, of which only `when` is read.
        domains: the domains of all parameters; `None` for a parameter whose definition has errors.
        errors: errors in the conditions are added to it.
    """
    when = definition.get("when", {}) if isinstance(definition, Mapping) else {}
    if not isinstance(when, Mapping):
        rule = 'write a table, as in when = { optimizer = "sgd" }'
        errors.add(name, f"when = {quote(when)} is {type_name(when)}: {rule}", of_type=True)
        return {}
    conditions: dict[str, tuple[Value, ...]] = {}
    # Sorted, so that the order within `when` makes no difference.
    for parent, wanted in sorted(when.items(), key=lambda item: str(item[0])):
        if parent not in domains:
            others = [str(other) for other in domains if other != name]
            rule = f"which is not defined: use one of {quote(others)}{did_you_mean(parent, others)}"
            errors.add(name, f"when names {quote(parent)}, {rule}")
            continue
        values = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        if not values:
            errors.add(name, f"when = {{ {parent} = [] }} holds for no value: write at least one")
        domain = domains[parent]
        if domain is None:
            conditions[parent] = ()
            continue
        for value in values:
            if reason := domain.reject_reason(value):
                errors.add(name, f"when requires {parent} = {quote(value)}, which is impossible: {reason}")
        possible = {
            domain.index(value): domain.normalize(value) for value in values if domain.reject_reason(value) is None
        }
        conditions[parent] = tuple(possible[index] for index in sorted(possible))
    return conditions


def sort_by_dependence(conditions: Mapping[str, Mapping[str, object]], errors: SpaceErrors) -> list[str]:
    """Return the names, each after those that it depends on. A cycle is added to the errors once."""
    order: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            errors.add(name, f"it depends on itself: {cycle}; remove one of these conditions")
        elif name not in order:
            for parent in conditions[name]:
                visit(parent, [*path, name])
            order.append(name)

    for name in conditions:
        visit(name, [])
    return order


def check_existence(name: str, parameters: Mapping[str, Parameter], errors: SpaceErrors) -> None:
    """Add an error if the conditions of a parameter and of those that it depends on exclude each other."""
    allowed: dict[str, set[float]] = {}
    unchecked = [name]
    while unchecked:
        for parent, values in parameters[unchecked.pop()].when.items():
            indices = {parameters[parent].domain.index(value) for value in values}
            allowed[parent] = allowed.get(parent, indices) & indices
            unchecked.append(parent)
    for parent, indices in allowed.items():
        if not indices:
            errors.add(
                name,
                f"it never exists: it and the parameters that it depends on require different values of "
                f"{quote(parent)}; write conditions with a common value",
            )
