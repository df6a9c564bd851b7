"""Registries, and the import of the modules that register something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.core.registry import Registry
from helios.errors import ArgumentTypeError, DuplicateNameError, UnknownNameError


def make_registry() -> Registry[int]:
    return Registry("number")


def test_register_is_a_decorator_and_a_call() -> None:
    """All four ways to register add the object under the right name and return it unchanged."""
    registry = make_registry()

    @registry.register
    def one() -> int:
        return 1

    @registry.register(suffix="b")
    def two() -> int:
        return 2

    def three() -> int:
        return 3

    assert registry.register(three) is three
    assert registry.register(three, name="drei", suffix="de") is three
    assert list(registry.keys()) == ["one", "two_b", "three", "drei_de"]
    assert [registry.get("one"), registry.get("two", suffix="b"), registry.get("two_b")] == [one, two, two]
    assert registry.get("drei", "de") is three


def test_create_passes_every_argument_on() -> None:
    """`create` calls the entry with positional and keyword arguments, those called `name` and `suffix` included."""
    registry: Registry[dict[str, object]] = Registry("table")

    @registry.register
    def table(first: int, **rest: object) -> dict[str, object]:
        return {"first": first, **rest}

    made = registry.create("table", 1, name="n", suffix="s", type_name="t")
    assert made == {"first": 1, "name": "n", "suffix": "s", "type_name": "t"}


def test_a_taken_name_is_refused_and_nothing_changes() -> None:
    """A duplicate name is a KeyError that names both objects and lists the names; the first entry stays."""
    registry = make_registry()
    registry.register(int, name="one")
    registry.register(int, name="two")
    with pytest.raises(DuplicateNameError, match=r"'one' is already a registered number \(builtins.int\)") as caught:
        registry.register(float, name="one")
    assert isinstance(caught.value, KeyError)
    assert "builtins.float" in str(caught.value)
    assert str(caught.value).endswith("there are one, two")
    assert registry.get("one") is int


def test_an_unknown_name_lists_what_there_is() -> None:
    """An unknown name is a KeyError that lists all names and suggests a similar one."""
    registry = make_registry()
    with pytest.raises(UnknownNameError, match="'one' is not a registered number: there are none yet"):
        registry.get("one")
    registry.register(int, name="seventeen")
    registry.register(int, name="eight")
    with pytest.raises(UnknownNameError, match="did you mean 'seventeen'. there are eight, seventeen") as caught:
        registry.create("sevnteen")
    assert isinstance(caught.value, KeyError)
    with pytest.raises(UnknownNameError, match="'nine_b' is not"):
        registry.get("nine", suffix="b")


def test_what_cannot_be_made_by_name_is_refused() -> None:
    """An object that is not callable, or has no name, is a TypeError that says what to pass."""
    registry = make_registry()
    with pytest.raises(ArgumentTypeError, match="'one' cannot be a registered number: register a class or a function"):
        registry.register("one")  # type: ignore[call-overload]  # The mistake under test.

    class Maker:
        def __call__(self) -> int:
            return 4

    with pytest.raises(ArgumentTypeError, match="no __name__: register it with name="):
        registry.register(Maker())
    registry.register(Maker(), name="four")
    assert registry.create("four") == 4


@given(st.lists(st.text(min_size=1), unique=True))
def test_it_reads_like_a_mapping_of_names(names: list[str]) -> None:
    """Iteration over pairs, `keys`, `len` and `in` agree with the names registered, in their order."""
    registry = make_registry()
    for name in names:
        registry.register(int, name=name)
    assert [name for name, _ in registry] == list(registry.keys()) == names
    assert all(obj is int for _, obj in registry)
    assert len(registry) == len(names)
    assert all(name in registry for name in names)
    assert "" not in registry
    assert 7 not in registry
    assert repr(registry) == f"Registry('number', {len(names)} names)"


def test_a_suffix_comes_before_the_bare_name() -> None:
    """`get` with a suffix falls back to the bare name; `register` takes the suffix by position."""
    registry = make_registry()
    registry.register(int)
    assert registry.get("int", "fast") is registry.get("int", suffix="fast") is int
    registry.register(int, "fast")
    registry.register(float, "fast")
    assert list(registry.keys()) == ["int", "int_fast", "float_fast"]
    assert registry.get("float", "fast") is float
    with pytest.raises(UnknownNameError, match="'float_slow' is not"):
        registry.get("float", "slow")


def test_its_text_lists_the_entries() -> None:
    """`str` shows each name with what is registered under it."""
    registry = make_registry()
    assert str(registry) == "number: 0 registered"
    registry.register(int)
    registry.register(dict, name="d")
    assert str(registry) == "number: 2 registered\n  int: builtins.int\n  d: builtins.dict"
