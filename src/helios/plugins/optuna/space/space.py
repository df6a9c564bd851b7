"""Search spaces that are written down: read from a TOML file or a mapping, and recorded with the study."""

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

# A key of a thousand parts, "a.b.c" and so on.
_DEEP_KEY: Final = re.compile(r"""(?<![\w"'-])(?:[\w"'-]++[ \t]*+\.[ \t]*+){1000}""")

# Which text a study of this process is known to have recorded: asking the storage in every trial would cost SQL.
_recorded: WeakKeyDictionary[optuna.Study, str] = WeakKeyDictionary()


class SearchSpace(Mapping[str, Parameter]):
    """The parameters of a study and the values that they may have, checked whole before the first trial.

    It maps names to parameters, in the order in which they are suggested: that of the definition, except that a
    parameter comes after those that it depends on. Two spaces are equal if they suggest the same, in the same order.

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
        definitions: for each name a mapping as described for `from_dict`.
        source: where they come from; errors begin with it.

    Raises:
        ArgumentTypeError: as `from_dict`.
        ConfigurationError: as `from_dict`.
    """

    def __init__(self, definitions: Mapping[str, Mapping[str, Any]], source: str = "search space") -> None:
        self._parameters = _read_parameters(definitions, source)
        self._text = json.dumps([{"name": name, **definition} for name, definition in self.to_dict().items()])

    @classmethod
    def from_dict(cls, definitions: Mapping[str, Mapping[str, Any]]) -> SearchSpace:
        """Make a space from a mapping of parameter names to definitions.

        Args:
            definitions: a definition has `kind` and, for the kind "float" or "int", `low` and `high` (both included)
                and perhaps `step`, or `log` (true: drawn evenly in the logarithm); for the kind "categorical" it has
                `choices`, a list of `None`, booleans, integers, floats and strings. With `when`, a mapping of other
                parameters' names to a value or a list of values, the parameter exists only in trials where each of
                them has such a value.

        Raises:
            ArgumentTypeError: if something has the wrong type, and nothing else is wrong.
            ConfigurationError: if any other rule is broken. The message tells everything that is wrong.
        """
        return cls(definitions)

    @classmethod
    def from_toml(cls, path: str | Path) -> SearchSpace:
        """Make a space from a TOML file with a table for each parameter, as `from_dict` describes them.

        Raises:
            FileAccessError: if the file cannot be read, or is something else than a file; it is an `OSError`.
            ArgumentTypeError: as `from_dict`, or if `path` is no path; the message begins with the path.
            ConfigurationError: as `from_dict`, or if the file is not TOML; the message says where.
        """
        with accessing(path), open_regular(to_path(path)) as file:
            source = file.read()
        try:
            text = source.decode()
            # The parser would take minutes for such a key.
            definitions = None if _DEEP_KEY.search(text) else tomllib.loads(text)
        except ValueError as error:  # Not UTF-8, not TOML, or a number with more digits than Python reads.
            raise ConfigurationError(f"{path}: this is not TOML: {error}") from error
        except RecursionError:
            definitions = None
        if definitions is None:
            raise ConfigurationError(f"{path}: tables, lists or keys are nested too deeply: write them flat")
        return cls(definitions, source=str(path))

    # ----------------------------------------------------------------------------------------------------- as a mapping

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
        """Return an expression that makes an equal space."""
        return f"SearchSpace.from_dict({self.to_dict()!r})"

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the mapping that `from_dict` makes this space of, with what is as by default left out."""
        return {name: parameter.to_dict() for name, parameter in self.items()}

    def canonical_text(self) -> str:
        """Return JSON that is the same for two spaces exactly if they are equal."""
        return self._text

    # ----------------------------------------------------------------------------------------------------- with a study

    def suggest(self, trial: Suggester) -> dict[str, Value]:
        """Suggest every parameter whose conditions hold.

        If the trial belongs to a study, the space is recorded with the study, or checked against what is recorded
        there: once for each study object in a process.

        Args:
            trial: an Optuna trial, or anything with its `suggest_float`, `suggest_int` and `suggest_categorical`.

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
        """Record the space with the study of a trial, if it has one; done once for each study object in a process."""
        study = getattr(trial, "study", None)
        if isinstance(study, optuna.Study) and _recorded.get(study) != self.canonical_text():
            self.record(study)

    def _exists(self, parameter: Parameter, values: Mapping[str, Value]) -> bool:
        def place(parent: str, value: Value) -> float:
            return self[parent].domain.place(value)

        return all(
            parent in values and place(parent, values[parent]) in [place(parent, value) for value in wanted]
            for parent, wanted in parameter.when.items()
        )

    def record(self, study: optuna.Study, *, replace: bool = False) -> None:
        """Write the space into the study's user attributes, where it is found when the study is resumed.

        Args:
            study: the study that is to be searched with this space.
            replace: whether this space may take the place of another one that is recorded.

        Raises:
            ConfigurationError: if the study has another space recorded, and that shall not be replaced.
        """
        if not replace:
            self.check(study)
        text = self.canonical_text()
        if study.user_attrs.get(SPACE_ATTRIBUTE) != text:
            study.set_user_attr(SPACE_ATTRIBUTE, text)
        _recorded[study] = text

    def check(self, study: optuna.Study) -> None:
        """Check that the study has no other space recorded; one that has none recorded is fine.

        Raises:
            ConfigurationError: if it has; the message tells each difference.
        """
        text = study.user_attrs.get(SPACE_ATTRIBUTE)
        if text is None or text == self.canonical_text():
            return
        differences = "\n  - ".join(_compare(_read_canonical(text, study), self.to_dict()))
        raise ConfigurationError(
            f"study {study.study_name!r} was searched with another space than this one:\n  - {differences}\n"
            "Go on with the recorded space, give the study another name, or, to change the space of this one from here "
            "on, call space.record(study, replace=True)"
        )


def _read_parameters(definitions: object, source: str) -> dict[str, Parameter]:
    if not isinstance(definitions, Mapping):
        raise ArgumentTypeError(
            f"{source}: {definitions!r} is {type_name(definitions)}: give a mapping of names to definitions"
        )
    if not definitions:
        raise ConfigurationError(
            f"{source}: no parameter is defined: define at least one, as in "
            'lr = { kind = "float", low = 1e-4, high = 1e-1, log = true }'
        )
    mistakes = SpaceErrors(source)
    domains = {name: read_domain(name, definition, mistakes) for name, definition in definitions.items()}
    conditions = {
        name: read_conditions(name, definition, domains, mistakes) for name, definition in definitions.items()
    }
    order = sort_by_dependence(conditions, mistakes)
    mistakes.raise_if_any()
    parameters = {name: Parameter(name, domain, conditions[name]) for name in order if (domain := domains[name])}
    for name in order:
        check_existence(name, parameters, mistakes)
    mistakes.raise_if_any()
    return parameters


def _read_canonical(text: object, study: optuna.Study) -> dict[str, dict[str, Any]]:
    try:
        definitions = json.loads(str(text))
        return {definition.pop("name"): definition for definition in definitions}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationError(
            f"study {study.study_name!r}: its user attribute {SPACE_ATTRIBUTE!r} is {text!r}, which is no search "
            "space: write this one over it with space.record(study, replace=True)"
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
        # Samplers draw one parameter after the other: another order gives other values.
        differences = [f"the order: {', '.join(recorded)} is recorded, this space has {', '.join(given)}"]
    return differences


def _show(definition: dict[str, Any], key: str) -> str:
    value = definition.get(key)
    if key not in definition:
        return "none"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {quote(wanted)}" for name, wanted in value.items()) + " }"
    return quote(value)
