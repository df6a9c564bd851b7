"""`SearchSpace`, which is read from a TOML file or a mapping and recorded with the study."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import optuna

from helios.core.paths import accessing, open_regular, to_path
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.optuna.space.conditions import check_existence, read_conditions, sort_by_dependence
from helios.plugins.optuna.space.definitions import read_domain
from helios.plugins.optuna.space.domains import Parameter
from helios.plugins.optuna.space.errors import SpaceErrors, quote, type_name
from helios.plugins.optuna.trial import RemoteTrial

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from helios.plugins.optuna.space.domains import Suggester, Value

# The user attribute of a study that holds the canonical text of its search space.
SPACE_ATTRIBUTE: Final = "helios:search_space"

# A dotted key with a thousand parts, as "a.b.c".
_DEEP_KEY: Final = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){1000}""")

# The text that is recorded with each study object, so that not every trial needs a query.
_recorded: WeakKeyDictionary[optuna.Study, str] = WeakKeyDictionary()


class SearchSpace(Mapping[str, Parameter]):
    """The parameters of a study and their possible values, checked completely before the first trial.

    It maps names to parameters, in the order in which they are suggested: the order of the definition, except that a
    parameter comes after those that it depends on. Two spaces are equal if they suggest the same parameters in the same
    order.

    >>> space = SearchSpace.from_dict({
    ...     "momentum": {"kind": "float", "low": 0, "high": 0.9, "when": {"optimizer": "sgd"}},
    ...     "optimizer": {"kind": "categorical", "choices": ["sgd", "adam"]},
    ... })
    >>> print(space)
    optimizer: one of ["sgd", "adam"]
    momentum: float 0.0 to 0.9, when optimizer = "sgd"
    >>> space.suggest(optuna.trial.FixedTrial({"optimizer": "adam"}))
    {'optimizer': 'adam'}

    Args:
        definitions: a mapping for each name, as described for `from_dict`.
        source: the origin of the definitions; error messages begin with it.

    Raises:
        ArgumentTypeError: as `from_dict`.
        ConfigurationError: as `from_dict`.
    """

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]], source: str = "search space") -> None:
        self._parameters = _read_parameters(definitions, source)
        self._text = json.dumps([{"name": name, **definition} for name, definition in self.to_dict().items()])

    @classmethod
    def from_dict(cls, definitions: Mapping[str, Mapping[str, Any]]) -> SearchSpace:
        """Create a space from a mapping of parameter names to definitions.

        Args:
            definitions: a definition has `kind` and, for the kind "float" or "int", `low` and `high` (both included)
                and optionally `step`, or `log` (true: sampled uniformly in the logarithm); for the kind "categorical"
                it has `choices`, a list of `None`, booleans, integers, floats and strings. With `when`, a mapping of
                names of other parameters to a value or a list of values, the parameter exists only in trials in which
                each of these has one of the values.

        Raises:
            ArgumentTypeError: if all errors are values of the wrong type.
            ConfigurationError: if there are other errors. The message lists all of them.
        """
        return cls(definitions)

    @classmethod
    def from_toml(cls, path: str | Path) -> SearchSpace:
        """Create a space from a TOML file with a table for each parameter, as described for `from_dict`.

        Raises:
            FileAccessError: if the file cannot be read, or is not a regular file; it is an `OSError`.
            ArgumentTypeError: as `from_dict`, or if `path` is not a path; the message begins with the path.
            ConfigurationError: as `from_dict`, or if the file is not TOML; the message contains the position.
        """
        with accessing(path), open_regular(to_path(path)) as file:
            source = file.read()
        try:
            text = source.decode()
            # Parsing such a key would take minutes.
            definitions = None if _DEEP_KEY.search(text) else tomllib.loads(text)
        except ValueError as error:  # Not UTF-8, not TOML, or a number with more digits than Python reads.
            raise ConfigurationError(f"{path}: this is not TOML: {error}") from error
        except RecursionError:
            definitions = None
        if definitions is None:
            raise ConfigurationError(f"{path}: tables, lists or keys are nested too deeply: write them flat")
        return cls(definitions, source=str(path))

    # ----------------------------------------------------------------------------------------------------- mapping

    def __getitem__(self, name: str) -> Parameter:
        """Return the parameter of this name."""
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order in which the parameters are suggested."""
        return iter(self._parameters)

    def __len__(self) -> int:
        """Return the number of parameters."""
        return len(self._parameters)

    def __eq__(self, other: object) -> bool:
        """Whether the other space suggests the same parameters in the same order."""
        return self.canonical_text() == other.canonical_text() if isinstance(other, SearchSpace) else NotImplemented

    def __hash__(self) -> int:
        """Equal spaces have equal hashes."""
        return hash(self.canonical_text())

    def __str__(self) -> str:
        """Return a line for each parameter."""
        return "\n".join(map(str, self.values()))

    def __repr__(self) -> str:
        """Return an expression that creates an equal space."""
        return f"SearchSpace.from_dict({self.to_dict()!r})"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return a mapping from which `from_dict` creates an equal space, without defaults."""
        return {name: parameter.to_dict() for name, parameter in self.items()}

    def canonical_text(self) -> str:
        """Return JSON, which is equal for two spaces if and only if they are equal."""
        return self._text

    # ----------------------------------------------------------------------------------------------------- studies

    def suggest(self, trial: Suggester) -> dict[str, Value]:
        """Suggest every parameter whose conditions hold.

        If the trial belongs to a study, the space is recorded with the study, or compared with the recorded one, once
        for each study object in a process.

        Args:
            trial: an Optuna trial, or another object with `suggest_float`, `suggest_int` and `suggest_categorical`.

        Returns:
            The values by name, in the order in which they were suggested.

        Raises:
            ConfigurationError: if the study has another search space recorded.
        """
        if isinstance(trial, RemoteTrial):
            trial.ask("record", self)
        else:
            self.ensure_recorded(trial)
        values: dict[str, Value] = {}
        for name, parameter in self.items():
            if self._exists(parameter, values):
                values[name] = parameter.domain.suggest(trial, name)
        return values

    def ensure_recorded(self, trial: object) -> None:
        """Record the space with the study of a trial, if it has one, once for each study object in a process."""
        study = getattr(trial, "study", None)
        if isinstance(study, optuna.Study) and _recorded.get(study) != self.canonical_text():
            self.record(study)

    def _exists(self, parameter: Parameter, values: Mapping[str, Value]) -> bool:
        def index(parent: str, value: Value) -> float:
            return self[parent].domain.index(value)

        return all(
            parent in values and index(parent, values[parent]) in [index(parent, value) for value in wanted]
            for parent, wanted in parameter.when.items()
        )

    def record(self, study: optuna.Study, *, replace: bool = False) -> None:
        """Record the space in the study's user attributes, for the comparison when the study is resumed.

        Args:
            study: the study that uses this space.
            replace: whether to replace another space that is recorded.

        Raises:
            ConfigurationError: if another space is recorded, and `replace` is false.
        """
        if not replace:
            self.check(study)
        text = self.canonical_text()
        if study.user_attrs.get(SPACE_ATTRIBUTE) != text:
            study.set_user_attr(SPACE_ATTRIBUTE, text)
        _recorded[study] = text

    def check(self, study: optuna.Study) -> None:
        """Check that no other space is recorded with the study.

        Raises:
            ConfigurationError: if another space is recorded; the message lists the differences.
        """
        text = study.user_attrs.get(SPACE_ATTRIBUTE)
        if text is None or text == self.canonical_text():
            return
        differences = "\n  - ".join(_compare(_read_canonical(text, study), self.to_dict()))
        raise ConfigurationError(
            f"study {study.study_name!r} was searched with another space than this one:\n  - {differences}\n"
            "Use the recorded space, give the study another name, or, to change the space for its remaining "
            "trials, call space.record(study, replace=True)"
        )


def _read_parameters(definitions: object, source: str) -> dict[str, Parameter]:
    if not isinstance(definitions, Mapping):
        raise ArgumentTypeError(
            f"{source}: {definitions!r} is {type_name(definitions)}: pass a mapping of names to definitions"
        )
    if not definitions:
        raise ConfigurationError(
            f"{source}: no parameter is defined: define at least one, as in "
            'lr = { kind = "float", low = 1e-4, high = 1e-1, log = true }'
        )
    errors = SpaceErrors(source)
    domains = {name: read_domain(name, definition, errors) for name, definition in definitions.items()}
    conditions = {name: read_conditions(name, definition, domains, errors) for name, definition in definitions.items()}
    order = sort_by_dependence(conditions, errors)
    errors.raise_if_any()
    parameters = {name: Parameter(name, domain, conditions[name]) for name in order if (domain := domains[name])}
    for name in order:
        check_existence(name, parameters, errors)
    errors.raise_if_any()
    return parameters


def _read_canonical(text: object, study: optuna.Study) -> dict[str, dict[str, Any]]:
    try:
        definitions = json.loads(str(text))
        return {definition.pop("name"): definition for definition in definitions}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"study {study.study_name!r}: its user attribute {SPACE_ATTRIBUTE!r} is {text!r}, which is no search "
            "space: replace it with space.record(study, replace=True)"
        ) from error


def _compare(recorded: dict[str, dict[str, Any]], given: dict[str, dict[str, Any]]) -> list[str]:
    differences = [f"{name}: recorded, but not in this space" for name in recorded if name not in given]
    differences += [f"{name}: in this space, but not recorded" for name in given if name not in recorded]
    for name in (name for name in recorded if name in given):
        old, new = recorded[name], given[name]
        changes = [
            f"{key} = {_show(old, key)} is recorded, this space has {_show(new, key)}"
            for key in dict.fromkeys([*old, *new])
            if _show(old, key) != _show(new, key)
        ]
        differences += [f"{name}: {'; '.join(changes)}"] if changes else []
    if not differences:
        # The order matters: samplers draw one parameter after the other.
        differences = [f"the order: {', '.join(recorded)} is recorded, this space has {', '.join(given)}"]
    return differences


def _show(definition: dict[str, Any], key: str) -> str:
    value = definition.get(key)
    if key not in definition:
        return "none"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {quote(wanted)}" for name, wanted in value.items()) + " }"
    return quote(value)
