"""Conditions between the parameters of a search space: which of them exist in a trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from helios.plugins.optuna.space.errors import SpaceErrors, did_you_mean, quote, type_name

if TYPE_CHECKING:
    from helios.plugins.optuna.space.domains import Domain, Parameter, Value


def read_conditions(
    name: str, definition: object, domains: Mapping[str, Domain | None], mistakes: SpaceErrors
) -> dict[str, tuple[Value, ...]]:
    """Return for each parameter that this one depends on the values with which it exists, after noting what is wrong.

    Args:
        name: the parameter's.
        definition: its definition, of which only `when` is looked at.
        domains: those of all parameters; `None` where the definition has mistakes.
        mistakes: takes the notes.
    """
    when = definition.get("when", {}) if isinstance(definition, Mapping) else {}
    if not isinstance(when, Mapping):
        rule = 'write a table, as in when = { optimizer = "sgd" }'
        mistakes.add(name, f"when = {quote(when)} is {type_name(when)}: {rule}", of_type=True)
        return {}
    conditions: dict[str, tuple[Value, ...]] = {}
    # Sorted, so that two files that say the same are the same space.
    for parent, wanted in sorted(when.items(), key=lambda item: str(item[0])):
        if parent not in domains:
            others = [str(other) for other in domains if other != name]
            rule = f"which is not defined: use one of {quote(others)}{did_you_mean(parent, others)}"
            mistakes.add(name, f"when names {quote(parent)}, {rule}")
            continue
        values = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        if not values:
            mistakes.add(name, f"when = {{ {parent} = [] }} holds for no value: write one or more")
        domain = domains[parent]
        if domain is None:
            conditions[parent] = ()
            continue
        for value in values:
            if reason := domain.refuse(value):
                mistakes.add(name, f"when waits for {parent} = {quote(value)}, which never comes: {reason}")
        possible = {domain.place(value): domain.as_own(value) for value in values if domain.refuse(value) is None}
        conditions[parent] = tuple(possible[place] for place in sorted(possible))
    return conditions


def sort_by_dependence(conditions: Mapping[str, Mapping[str, object]], mistakes: SpaceErrors) -> list[str]:
    """Return the names, each after those it depends on; a circle is noted once."""
    order: list[str] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            mistakes.add(name, f"it depends on itself: {circle}; take one of these conditions away")
        elif name not in order:
            for parent in conditions[name]:
                visit(parent, [*path, name])
            order.append(name)

    for name in conditions:
        visit(name, [])
    return order


def check_existence(name: str, parameters: Mapping[str, Parameter], mistakes: SpaceErrors) -> None:
    """Note it if the conditions of a parameter and of those it depends on can never hold together."""
    allowed: dict[str, set[float]] = {}
    waiting = [name]
    while waiting:
        for parent, values in parameters[waiting.pop()].when.items():
            places = {parameters[parent].domain.place(value) for value in values}
            allowed[parent] = allowed.get(parent, places) & places
            waiting.append(parent)
    for parent, places in allowed.items():
        if not places:
            mistakes.add(
                name,
                f"it never exists: it and the parameters that it depends on want different values of {quote(parent)}; "
                "let their conditions share a value",
            )
