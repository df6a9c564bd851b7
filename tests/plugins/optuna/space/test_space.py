from __future__ import annotations

import copy
import enum
import json
import pickle
import re
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import optuna
import pytest
from hypothesis import given

from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.optuna.space.space import SPACE_ATTRIBUTE, SearchSpace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOML = """
# The child is defined before its parents.
momentum = { kind = "float", low = 0.0, high = 0.9, step = 0.1, when = { optimizer = ["sgd", "rmsprop"] } }
optimizer = { kind = "categorical", choices = ["adam", "sgd", "rmsprop"] }
nesterov = { kind = "categorical", choices = [true, false], when = { optimizer = "sgd", momentum = [0.3, 0.6] } }

[lr]
kind = "float"
low = 1e-4
high = 1
log = true

[layers]
kind = "int"
low = 1
high = 9
step = 2
"""

PARENTS: dict[str, Any] = {
    "optimizer": {"kind": "categorical", "choices": ["sgd", "adam"]},
    "flag": {"kind": "categorical", "choices": [True, False]},
    "lr": {"kind": "float", "low": 0.1, "high": 1.0},
    "size": {"kind": "int", "low": 8, "high": 32, "step": 8},
    "rate": {"kind": "float", "low": 0, "high": 1, "step": 0.25},
}


class Recorder:
    """A trial with the three suggest methods only, which takes the last value of each domain."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        self.calls.append((name, {"low": low, "high": high, "step": step, "log": log}))
        return high

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.calls.append((name, {"low": low, "high": high, "step": step, "log": log}))
        return high

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.calls.append((name, {"choices": choices}))
        return choices[-1]


def make_study(seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name="digits", sampler=optuna.samplers.RandomSampler(seed=seed))


def from_text(text: str, folder: Path) -> SearchSpace:
    path = folder / "space.toml"
    path.write_text(text, encoding="utf-8")
    return SearchSpace.from_toml(path)


# ----------------------------------------------------------------------------------------------------------- valid ones


def test_a_file_defines_the_suggestions(tmp_path: Path) -> None:
    """Every key of the file reaches the trial, parents first, and conditions decide which parameters are suggested."""
    space = from_text(TOML, tmp_path)
    assert list(space) == ["optimizer", "momentum", "nesterov", "lr", "layers"]
    trial = Recorder()
    values = space.suggest(trial)
    assert values == {"optimizer": "rmsprop", "momentum": 0.9, "lr": 1.0, "layers": 9}
    assert trial.calls == [
        ("optimizer", {"choices": ("adam", "sgd", "rmsprop")}),
        ("momentum", {"low": 0.0, "high": 0.9, "step": 0.1, "log": False}),
        ("lr", {"low": 1e-4, "high": 1.0, "step": None, "log": True}),
        ("layers", {"low": 1, "high": 9, "step": 2, "log": False}),
    ]


def test_conditions_hold_for_the_values_that_a_trial_has(tmp_path: Path) -> None:
    """A parameter exists if and only if all conditions hold, and 0.1 + 0.2 is the third step of 0.1."""
    space = from_text(TOML, tmp_path)
    rest = {"lr": 0.1, "layers": 3}

    def names(params: dict[str, Any]) -> set[str]:
        return set(space.suggest(optuna.trial.FixedTrial({"nesterov": True, **rest, **params}))) - set(rest)

    assert names({"optimizer": "adam"}) == {"optimizer"}
    assert names({"optimizer": "rmsprop", "momentum": 0.3}) == {"optimizer", "momentum"}
    assert names({"optimizer": "sgd", "momentum": 0.4}) == {"optimizer", "momentum"}
    for momentum in (0.3, 0.1 + 0.2, 0.6):
        assert names({"optimizer": "sgd", "momentum": momentum}) == {"optimizer", "momentum", "nesterov"}


def test_a_space_reads_as_a_mapping_of_parameters(tmp_path: Path) -> None:
    """The space is a mapping; str has a line for each parameter, and repr creates an equal space."""
    space = from_text(TOML, tmp_path)
    assert len(space) == 5
    assert space["layers"].name == "layers"
    assert "lr" in space
    assert "foo" not in space
    assert str(space).splitlines() == [
        'optimizer: one of ["adam", "sgd", "rmsprop"]',
        'momentum: float 0.0 to 0.9, step 0.1, when optimizer = "sgd" or "rmsprop"',
        'nesterov: one of [true, false], when momentum = 0.3 or 0.6 and optimizer = "sgd"',
        "lr: float 0.0001 to 1.0, log",
        "layers: int 1 to 9, step 2",
    ]
    assert eval(repr(space), {"SearchSpace": SearchSpace}) == space  # noqa: S307 - what repr promises.


def test_equal_spaces_say_the_same_in_the_same_order() -> None:
    """Omitted keys have their default, conditions are sets, and another order or type gives another space."""
    lr = {"kind": "float", "low": 0.0, "high": 1.0}
    spelled_out = {"kind": "float", "low": 0, "high": 1, "log": False, "when": {}}
    assert SearchSpace.from_dict({"lr": lr}) == SearchSpace.from_dict({"lr": spelled_out})
    one, other = ({**PARENTS, "x": {**lr, "when": {"size": sizes, "flag": True}}} for sizes in ((8, 16), [16, 8, 8]))
    assert SearchSpace.from_dict(one) == SearchSpace.from_dict(other)
    assert hash(SearchSpace.from_dict(one)) == hash(SearchSpace.from_dict(other))
    assert SearchSpace.from_dict({"a": lr, "b": lr}) != SearchSpace.from_dict({"b": lr, "a": lr})
    assert SearchSpace.from_dict({"a": {"kind": "int", "low": 0, "high": 1}}) != SearchSpace.from_dict({"a": lr})
    assert SearchSpace.from_dict({"lr": lr}) != {"lr": lr}


def test_a_space_travels_to_other_processes(tmp_path: Path) -> None:
    """A pickled or copied space is equal to the original, and does not change with the mapping it was created from."""
    space = from_text(TOML, tmp_path)
    definitions = space.to_dict()
    assert pickle.loads(pickle.dumps(space)) == copy.deepcopy(space) == space
    definitions["optimizer"]["choices"].append("lion")
    assert space.to_dict() != definitions


def test_values_of_derived_classes_become_the_builtins_that_are_stored() -> None:
    """NumPy floats and enum members are suggested as the builtin values that a storage returns."""

    class Colour(enum.StrEnum):
        RED = "red"

    space = SearchSpace.from_dict(
        {
            "x": {"kind": "float", "low": np.float64(0.0), "high": np.float64(1.0)},
            "c": {"kind": "categorical", "choices": [Colour.RED, np.float64(2.5), None, float("inf")]},
        }
    )
    choices = Recorder()
    space.suggest(choices)
    assert [type(choice) for choice in choices.calls[1][1]["choices"]] == [str, float, type(None), float]
    assert type(choices.calls[0][1]["low"]) is float
    assert repr(space) == repr(SearchSpace.from_dict(space.to_dict()))


# --------------------------------------------------------------------------------------------------------------- errors

FLOAT = {"kind": "float", "low": 0.1, "high": 1.0}
INT = {"kind": "int", "low": 1, "high": 9}


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"low": 1}, "kind is missing: write kind ="),
        ({**FLOAT, "kind": "flaot"}, 'kind = "flaot" is unknown: .* did you mean "float"'),
        ({"kind": "float", "high": 1}, "low is missing: a range has"),
        ({"kind": "int", "low": 1}, "high is missing: a range has"),
        ({**FLOAT, "low": 2.0}, "low = 2.0 is above high = 1.0: swap"),
        ({**FLOAT, "low": 0, "log": True}, "low = 0.0 is not above 0, as log = true requires: raise"),
        ({**INT, "low": 0, "log": True}, "low = 0 is not above 0, as log = true requires: raise"),
        ({**FLOAT, "step": 0.1, "log": True}, "step = 0.1 and log = true exclude each other: remove one"),
        ({**INT, "step": 2, "log": True}, "step = 2 and log = true exclude each other: remove one"),
        ({**FLOAT, "step": 0}, "step = 0.0 is not above 0: write a positive"),
        ({**INT, "step": -1}, "step = -1 is not above 0: write a positive"),
        ({**FLOAT, "step": 0.4}, "high = 1.0 is not low = 0.1 plus a multiple of step = 0.4: .* high = 0.9, or change"),
        ({**INT, "step": 3}, "high = 9 is not low = 1 plus a multiple of step = 3: .* high = 7, or change"),
        ({**FLOAT, "step": 1e-300}, "step = 1e-300 is too small"),
        ({**FLOAT, "high": float("inf")}, "high = inf is not a finite double"),
        ({**FLOAT, "high": float("nan")}, "high = nan is not a finite double"),
        ({**FLOAT, "high": 10**400}, "high = 10+ is not a finite double"),
        ({**FLOAT, "low": -1.7e308, "high": 1.7e308}, "high - low overflows"),
        ({**INT, "high": 2**53 + 1}, "high = 9007199254740993 is beyond 2\\*\\*53"),
        ({**FLOAT, "hihg": 1}, 'unknown key "hihg": .* takes kind, low, high, step, log, when; did you mean "high"'),
        ({**INT, "choices": [1]}, 'unknown key "choices": a parameter of this kind takes'),
        ({"kind": "categorical"}, "choices are missing: write choices"),
        ({"kind": "categorical", "choices": []}, r"choices = \[\] is empty: write at least one"),
        ({"kind": "categorical", "choices": [1, 1]}, "choice 1 equals the choice 1: Optuna cannot distinguish"),
        ({"kind": "categorical", "choices": [0, False]}, "choice false equals the choice 0: Optuna cannot distinguish"),
        ({"kind": "categorical", "choices": [float("nan")]}, "choice nan equals no value"),
        ({**FLOAT, "when": {"optimiser": "sgd"}}, 'when names "optimiser", .* did you mean "optimizer"'),
        ({**FLOAT, "when": {"optimizer": "lion"}}, 'when requires optimizer = "lion", .* ["sgd", "adam"]'),
        ({**FLOAT, "when": {"flag": 1}}, r"when requires flag = 1, .* \[true, false\]"),
        ({**FLOAT, "when": {"flag": []}}, r"when = \{ flag = \[\] \} holds for no value"),
        ({**FLOAT, "when": {"size": 12}}, "when requires size = 12, .* 8 plus a multiple of 8"),
        ({**FLOAT, "when": {"size": 40}}, "when requires size = 40, .* outside of 8 to 32"),
        ({**FLOAT, "when": {"size": 8.0}}, "when requires size = 8.0, .* it is a float, not an integer"),
        ({**FLOAT, "when": {"rate": 0.3}}, "when requires rate = 0.3, .* 0.0 plus a multiple of 0.25"),
        ({**FLOAT, "when": {"rate": 2}}, "when requires rate = 2, .* outside of 0.0 to 1.0"),
        ({**FLOAT, "when": {"rate": True}}, "when requires rate = true, .* a boolean, not a float"),
        (
            {**FLOAT, "when": {"lr": 0.5}},
            "when requires lr = 0.5, .* without a step never has exactly this value: define a step",
        ),
        ({**INT, "when": {"x": 5}}, "it depends on itself: x -> x; remove one"),
    ],
)
def test_a_broken_rule_is_named_with_value_and_remedy(definition: dict[str, Any], said: str) -> None:
    """Each broken rule gives an error that names parameter, value and remedy."""
    with pytest.raises(ConfigurationError, match=r'^search space: parameter "x": ' + said.replace('["', r'\["')):
        SearchSpace.from_dict({**PARENTS, "x": definition})


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        (0.1, "0.1 is a float: a parameter is a table, as in x = {"),
        ({"kind": 3}, "kind = 3 is an integer: write kind"),
        ({**FLOAT, "low": "1e-4"}, 'low = "1e-4" is a string: write a number'),
        ({**FLOAT, "low": True}, "low = true is a boolean: write a number"),
        ({**INT, "low": 1.0}, "low = 1.0 is a float: write an integer, or kind"),
        ({**FLOAT, "log": 1}, "log = 1 is an integer: write true or false"),
        ({"kind": "categorical", "choices": "abc"}, 'choices = "abc" is a string: write a list'),
        ({"kind": "categorical", "choices": [[1]]}, r"choice \[1\] is a list: Optuna stores None"),
        (
            {"kind": "categorical", "choices": [np.int64(3)]},
            r"choice np.int64\(3\) is a numpy.int64: Optuna stores None",
        ),
        ({**FLOAT, "when": "sgd"}, 'when = "sgd" is a string: write a table'),
    ],
)
def test_a_wrong_type_is_a_type_error(definition: Any, said: str) -> None:
    """A value of the wrong type is shown with its type."""
    with pytest.raises(ArgumentTypeError, match=r'^search space: parameter "x": ' + said):
        SearchSpace.from_dict({**PARENTS, "x": definition})


@pytest.mark.parametrize(
    ("definitions", "error", "said"),
    [
        ({}, ConfigurationError, "search space: no parameter is defined: define at least one"),
        ([FLOAT], ArgumentTypeError, "is a list: pass a mapping"),
        ({3: FLOAT}, ArgumentTypeError, "parameter 3: its name is an integer: use a string"),
        ({"": FLOAT}, ConfigurationError, 'parameter "": a name has 1 to 512 printable characters'),
        ({"a\nb": FLOAT}, ConfigurationError, "a name has 1 to 512 printable characters"),
        ({"a" * 513: FLOAT}, ConfigurationError, "a name has 1 to 512 printable characters"),
    ],
)
def test_invalid_spaces_are_rejected(definitions: Any, error: type[Exception], said: str) -> None:
    """An empty space, a value that is not a mapping, and invalid names are errors."""
    with pytest.raises(error, match=said):
        SearchSpace.from_dict(definitions)


def test_all_errors_are_listed_at_once(tmp_path: Path) -> None:
    """One exception lists the errors of all parameters and begins with the file."""
    text = 'lr = { kind = "float", low = 1, high = 0, lgo = true }\ndepth = 3\nwidth = { kind = "itn" }\n'
    with pytest.raises(ConfigurationError) as caught:
        from_text(text, tmp_path)
    first, *errors = str(caught.value).splitlines()
    assert first == f"{tmp_path / 'space.toml'}: 4 errors:"
    assert [re.findall('parameter "(.*?)": (.{8})', error)[0] for error in errors] == [
        ("lr", "unknown "),
        ("lr", "low = 1."),
        ("depth", "3 is an "),
        ("width", 'kind = "'),
    ]


def test_a_file_that_is_not_toml_is_rejected_with_the_line(tmp_path: Path) -> None:
    """A syntax error or bytes that are not UTF-8 name the file and the position; a missing file is an OSError."""
    path = tmp_path / "space.toml"
    with pytest.raises(ConfigurationError, match=rf"{re.escape(str(path))}: this is not TOML: .*at line 2"):
        from_text("\nlr = = 1\n", tmp_path)
    path.write_bytes(b"lr = \xff")
    with pytest.raises(ConfigurationError, match=rf"{re.escape(str(path))}: this is not TOML: .*utf-8"):
        SearchSpace.from_toml(path)
    with pytest.raises(FileNotFoundError, match="missing.toml"):
        SearchSpace.from_toml(tmp_path / "missing.toml")


@pytest.mark.parametrize("circle", [("a", "b"), ("a", "b", "c"), ("b", "a", "c", "d")])
def test_cycles_are_reported_once(circle: tuple[str, ...]) -> None:
    """Parameters that depend on each other are rejected, and the message shows the cycle."""
    definitions = {
        name: {"kind": "int", "low": 0, "high": 1, "when": {parent: 1}}
        for name, parent in zip(circle, circle[1:] + circle[:1], strict=True)
    }
    definitions["child"] = {"kind": "int", "low": 0, "high": 1, "when": {"a": 1}}
    with pytest.raises(ConfigurationError) as caught:
        SearchSpace.from_dict(definitions)
    assert str(caught.value).count("it depends on itself") == 1
    assert " -> ".join([*circle, circle[0]]) in str(caught.value)


def test_a_parameter_that_can_never_exist_is_refused() -> None:
    """Conditions that contradict each other, also through a parent, are found before the first trial."""
    parent = {**INT, "when": {"optimizer": "sgd"}}
    SearchSpace.from_dict({**PARENTS, "parent": parent, "x": {**FLOAT, "when": {"parent": 1, "optimizer": "sgd"}}})
    with pytest.raises(ConfigurationError, match='parameter "x": it never exists: .* different values of "optimizer"'):
        SearchSpace.from_dict({**PARENTS, "parent": parent, "x": {**FLOAT, "when": {"parent": 1, "optimizer": "adam"}}})


# ----------------------------------------------------------------------------------------------------------- properties


@st.composite
def domains(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["float", "int", "categorical"]))
    if kind == "categorical":
        scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
        return {
            "kind": kind,
            "choices": draw(st.lists(scalars, min_size=1, max_size=4, unique=True)),
        }
    if kind == "int":
        low, step, count = draw(st.integers(-(10**6), 10**6)), draw(st.integers(1, 50)), draw(st.integers(0, 20))
        log = low > 0 and step == 1 and draw(st.booleans())
        return {"kind": kind, "low": low, "high": low + step * count, "step": step, "log": log}
    if draw(st.booleans()):
        count, width = draw(st.integers(0, 20)), draw(st.sampled_from([0.1, 0.25, 0.3, 2.0]))
        low = draw(st.integers(-5, 5))
        return {"kind": kind, "low": low, "high": round(low + count * width, 6), "step": width}
    least, most = sorted(draw(st.tuples(*[st.floats(-1e300, 1e300)] * 2)))
    return {"kind": kind, "low": least, "high": most, "log": least > 0 and draw(st.booleans())}


def possible_values(definition: dict[str, Any]) -> list[Any]:
    if definition["kind"] == "categorical":
        return list(definition["choices"])
    if "step" not in definition:
        return []
    steps = round((definition["high"] - definition["low"]) / definition["step"])
    return [definition["low"] + i * definition["step"] for i in range(min(steps, 10) + 1)]


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=5, unique=True))
    definitions = {name: draw(domains()) for name in names}
    for i, name in enumerate(names[1:]):
        parent = draw(st.sampled_from(names[: i + 1]))
        if values := possible_values(definitions[parent]):
            wanted = draw(st.sampled_from(values) | st.lists(st.sampled_from(values), min_size=1, max_size=3))
            definitions[name]["when"] = {parent: wanted}
    order = draw(st.permutations(names))
    return {name: definitions[name] for name in order}


@given(definitions=spaces())
def test_to_dict_is_the_inverse_of_from_dict(definitions: dict[str, Any]) -> None:
    """A space that is created from `to_dict` is equal, also through JSON, and gives the same mapping."""
    space = SearchSpace.from_dict(definitions)
    again = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space
    assert dict(again) == dict(space)
    assert repr(again.to_dict()) == repr(space.to_dict())
    assert set(space) == set(definitions)
    for name, definition in space.to_dict().items():
        assert all(definitions[name][key] == value for key, value in definition.items() if key != "when")


@given(definitions=spaces(), seed=st.integers(0, 100))
def test_suggestions_lie_in_the_space_and_conditions_hold(definitions: dict[str, Any], seed: int) -> None:
    """In real trials each value is possible, and each parameter exists if and only if its conditions hold."""
    space = SearchSpace.from_dict(definitions)
    study = make_study(seed)
    for _ in range(3):
        trial = study.ask()
        values = space.suggest(trial)
        assert trial.params == values
        for name, definition in definitions.items():
            parents = definition.get("when", {})
            wanted = {parent: set(map(repr_of(definitions[parent]), as_list(want))) for parent, want in parents.items()}
            holds = all(p in values and repr_of(definitions[p])(values[p]) in wanted[p] for p in parents)
            assert (name in values) == holds
            if holds:
                ensure_admitted(definition, values[name])


def as_list(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def repr_of(definition: dict[str, Any]) -> Any:
    return (lambda value: round(value, 6) + 0.0) if definition["kind"] == "float" else repr


def ensure_admitted(definition: dict[str, Any], value: Any) -> None:
    if definition["kind"] == "categorical":
        assert any(choice == value and type(choice) is type(value) for choice in definition["choices"])
        return
    assert type(value) is {"float": float, "int": int}[definition["kind"]]
    assert definition["low"] <= value <= definition["high"]
    if "step" in definition:
        steps = (value - definition["low"]) / definition["step"]
        assert steps == pytest.approx(round(steps))


# --------------------------------------------------------------------------------------------------------- with a study


def test_the_first_trial_records_the_space_and_the_next_one_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is in the study's attributes after the first trial; later trials do not access the storage."""
    space, study = SearchSpace.from_dict(PARENTS), make_study()
    space.suggest(study.ask())
    assert json.loads(study.user_attrs[SPACE_ATTRIBUTE])[0] == {"name": "optimizer", **PARENTS["optimizer"]}
    reads: list[int] = []
    get = study._storage.get_study_user_attrs

    def count_reads(study_id: int) -> dict[str, Any]:
        reads.append(study_id)
        return get(study_id)

    monkeypatch.setattr(study._storage, "get_study_user_attrs", count_reads)
    space.suggest(study.ask())
    assert reads == []
    SearchSpace.from_dict(PARENTS).check(study)
    assert reads != []


def test_a_study_resumed_with_another_space_says_what_differs(tmp_path: Path) -> None:
    """An error lists all differences, with values and remedies, before a parameter is suggested."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    old = {**PARENTS, "gone": FLOAT, "c": {**FLOAT, "when": {"optimizer": "sgd"}}}
    new = {**PARENTS, "lr": {**PARENTS["lr"], "high": 2.0, "log": True}, "new": FLOAT, "c": FLOAT}
    SearchSpace.from_dict(old).suggest(optuna.create_study(study_name="digits", storage=storage).ask())
    trial = optuna.load_study(study_name="digits", storage=storage).ask()
    with pytest.raises(ConfigurationError) as caught:
        SearchSpace.from_dict(new).suggest(trial)
    *lines, remedies = str(caught.value).splitlines()
    assert lines == [
        "study 'digits' was searched with another space than this one:",
        "  - gone: recorded, but not in this space",
        "  - new: in this space, but not recorded",
        "  - lr: high = 1.0 is recorded, this space has 2.0; log = none is recorded, this space has true",
        '  - c: when = { optimizer = "sgd" } is recorded, this space has none',
    ]
    assert "give the study another name, or" in remedies
    assert "call space.record(study, replace=True)" in remedies
    assert trial.params == {}
    SearchSpace.from_dict(old).suggest(optuna.load_study(study_name="digits", storage=storage).ask())


def test_another_order_is_another_space() -> None:
    """A space with the same parameters in another order is another space, because samplers draw in order."""
    study = make_study()
    SearchSpace.from_dict({"a": FLOAT, "b": FLOAT}).record(study)
    with pytest.raises(ConfigurationError, match="the order: a, b is recorded, this space has b, a"):
        SearchSpace.from_dict({"b": FLOAT, "a": FLOAT}).check(study)


def test_a_recorded_space_is_replaced_only_when_asked_to() -> None:
    """`record` raises the error of `check`, and with `replace=True` replaces the recorded space."""
    study, old, new = make_study(), SearchSpace.from_dict({"a": FLOAT}), SearchSpace.from_dict({"a": INT})
    old.check(study)
    assert SPACE_ATTRIBUTE not in study.user_attrs
    old.record(study)
    old.record(study)
    with pytest.raises(ConfigurationError, match="another space"):
        new.record(study)
    old.check(study)
    new.record(study, replace=True)
    new.check(study)
    with pytest.raises(ConfigurationError, match='a: kind = "int" is recorded, this space has "float"'):
        old.suggest(study.ask())


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '["a"]', "3", '[{"kind": "float"}]'])
def test_an_attribute_that_is_not_a_space_is_rejected(text: str) -> None:
    """Another value in the attribute is shown with the remedy, and can be replaced."""
    study, space = make_study(), SearchSpace.from_dict({"a": FLOAT})
    study.set_user_attr(SPACE_ATTRIBUTE, text)
    with pytest.raises(ConfigurationError, match="which is no search space: replace it"):
        space.check(study)
    space.record(study, replace=True)
    space.check(study)
