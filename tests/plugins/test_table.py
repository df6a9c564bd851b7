from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios import Plugin, Trainer
from helios.errors import (
    ArgumentTypeError,
    ConfigurationError,
    DuplicateNameError,
    PluginConflictError,
    UnknownNameError,
)
from helios.plugins import DevicePlugin, PluginTable, UniquePluginOverrides
from tests.trainer.parts import CountingModel, ListData, SimplePlugin, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from helios import TrainingState

CLAIMS = ["training_batch", "validation_batch", "testing_batch", "should_training_stop"]


class Other(SimplePlugin):
    """Another class of plug-in."""


def make_table(*ids: str) -> PluginTable:
    table = PluginTable()
    for plug_id in ids:
        table[plug_id] = SimplePlugin(plug_id)
    return table


def test_the_table_reads_by_id_class_and_position() -> None:
    """`plugins["id"]`, `plugins[Class]` and `plugins[0]` are the plug-in; negative positions count back."""
    table, device = make_table("b", "a"), DevicePlugin("cpu")
    table["device"] = device
    assert table["device"] is table[DevicePlugin] is table[2] is table[-1] is device
    assert (table[0].plug_id, table[1].plug_id, table[-3].plug_id) == ("b", "a", "b")
    assert table.get("a") is table[1]
    assert table.get("missing") is None


def test_the_table_is_a_mapping_of_ids() -> None:
    """It iterates and counts like a mapping of ids, in the order of registration."""
    table = make_table("b", "a")
    assert list(table) == list(table.keys()) == ["b", "a"]
    assert len(table) == 2
    assert [plugin.plug_id for plugin in table.values()] == ["b", "a"]
    assert dict(table.items()) == {"b": table["b"], "a": table["a"]}
    assert repr(table) == "PluginTable({'b': 'SimplePlugin', 'a': 'SimplePlugin'})"
    removed = table["b"]
    del table["b"]
    assert list(table) == ["a"]
    table.update({"b": removed})
    assert list(table) == ["a", "b"]


def test_the_table_knows_what_it_holds() -> None:
    """Ids, classes and plug-ins can be asked for with `in`, and anything else is just not there."""
    table = make_table("a")
    known: list[Any] = ["a", SimplePlugin, Plugin, table["a"]]
    strangers: list[Any] = ["b", Other, SimplePlugin("a"), 0, None, []]
    assert [key in table for key in known] == [True] * 4
    assert [key in table for key in strangers] == [False] * 6


@pytest.mark.parametrize("key", ["missing", Other, 2, -3])
def test_a_missing_key_says_what_there_is(key: Any) -> None:
    """A missing key is a `KeyError` that lists the ids; an empty table says that it is empty."""
    with pytest.raises(UnknownNameError, match=r"no plug-in .*: there are \['b', 'a'\]") as caught:
        make_table("b", "a")[key]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(KeyError, match="no plug-in is registered"):
        PluginTable()[key]
    with pytest.raises(KeyError):
        del make_table("b")["a"]


def test_a_class_of_several_is_ambiguous() -> None:
    """A class that two plug-ins have asks for one of their ids, in place of picking one."""
    with pytest.raises(UnknownNameError, match=r"2 plug-ins are a SimplePlugin: use one of the ids \['b', 'a'\]"):
        make_table("b", "a")[SimplePlugin]


REGISTER: list[Callable[[Trainer, Plugin], object]] = [
    lambda trainer, plugin: plugin._register_in_trainer(trainer),
    lambda trainer, plugin: trainer.plugins.__setitem__(plugin.plug_id, plugin),
    lambda trainer, plugin: trainer.register_plugin(plugin),
    lambda trainer, plugin: plugin.configure_trainer(trainer),
]


@pytest.mark.parametrize("register", REGISTER)
@pytest.mark.parametrize("again", REGISTER)
def test_all_ways_to_register_are_one(
    register: Callable[[Trainer, Plugin], object], again: Callable[[Trainer, Plugin], object]
) -> None:
    """Whichever way, the plug-in is in the table; another way again is no error and no second entry."""
    trainer, plugin = Trainer(), SimplePlugin("x")
    register(trainer, plugin)
    again(trainer, plugin)
    assert list(trainer.plugins) == ["x"]
    assert trainer.plugins["x"] is plugin
    with pytest.raises(
        DuplicateNameError, match=r"plug-in id 'x' is taken: there are \['x'\]; choose another"
    ) as caught:
        register(trainer, SimplePlugin("x"))
    assert isinstance(caught.value, KeyError)
    assert trainer.plugins["x"] is plugin


@pytest.mark.parametrize("thing", [None, "x", SimplePlugin, torch.nn.Identity()])
def test_only_plugins_are_registered(thing: Any) -> None:
    """Anything that is no plug-in object is refused by its type."""
    trainer = Trainer()
    with pytest.raises(ArgumentTypeError, match="is no Plugin; derive from it"):
        trainer.register_plugin(thing)
    assert len(trainer.plugins) == 0


def test_a_key_may_differ_from_the_id() -> None:
    """A plug-in may have a key that is not its id, and is found, removed and protected under that key alone."""
    table, plugin = PluginTable(), SimplePlugin("x")
    table["y"] = plugin
    assert (list(table), table["y"], table[SimplePlugin], "x" in table) == (["y"], plugin, plugin, False)
    with pytest.raises(DuplicateNameError, match="is registered under 'y', and would run twice: use one key"):
        table["x"] = plugin
    with pytest.raises(DuplicateNameError, match="'y' is taken"):
        table["y"] = SimplePlugin("y")
    for key in ("", 3):
        with pytest.raises(ConfigurationError, match="is no key; use a string that is not empty"):
            table[key] = SimplePlugin("z")  # type: ignore[index]  # the point
    del table["y"]
    assert len(table) == 0


def by_flag(claim: str, plug_id: str) -> Plugin:
    plugin = SimplePlugin(plug_id)
    setattr(plugin.unique_overrides, claim, True)
    return plugin


class TrainingBatch(SimplePlugin):
    def process_training_batch(self, batch: Any, state: TrainingState) -> Any:
        del state
        return batch


class ValidationBatch(SimplePlugin):
    def process_validation_batch(self, batch: Any, step: int) -> Any:
        del step
        return batch


class TestingBatch(SimplePlugin):
    __test__ = False

    def process_testing_batch(self, batch: Any, step: int) -> Any:
        del step
        return batch


class Stop(SimplePlugin):
    def should_training_stop(self) -> bool:
        return False


def by_override(claim: str, plug_id: str) -> Plugin:
    classes = dict(zip(CLAIMS, [TrainingBatch, ValidationBatch, TestingBatch, Stop], strict=True))
    return classes[claim](plug_id)


def by_assigning(claim: str, plug_id: str) -> Plugin:
    plugin = SimplePlugin(plug_id)
    method = claim if claim == "should_training_stop" else f"process_{claim}"
    setattr(plugin, method, lambda *_: False)
    return plugin


WAYS = [by_flag, by_override, by_assigning]


def test_the_claims_are_four() -> None:
    """The unique overrides are these four, and a plug-in claims none of them unless it says so."""
    assert vars(UniquePluginOverrides()) == dict.fromkeys(CLAIMS, False)
    assert SimplePlugin("x").unique_overrides == UniquePluginOverrides()


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_two_plugins_with_one_claim_are_refused(
    claim: str, first: Callable[[str, str], Plugin], second: Callable[[str, str], Plugin]
) -> None:
    """The second claim is refused on adding, by flag or override; both are named; the table is as before."""
    trainer, holder = Trainer(), first(claim, "holder")
    trainer.register_plugin(holder)
    others = [by_override(other, other) for other in CLAIMS if other != claim]
    for other in others:
        trainer.register_plugin(other)
    before = dict(trainer.plugins.items())
    with pytest.raises(PluginConflictError, match=f"'late' claims {claim}, already held by 'holder'") as caught:
        trainer.register_plugin(second(claim, "late"))
    assert isinstance(caught.value, ValueError)
    assert dict(trainer.plugins.items()) == before


class Preparing(ListData):
    is_prepared = False

    def prepare_data(self) -> None:
        self.is_prepared = True


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("when", ["before fit", "in setup", "before test"])
def test_a_late_flag_is_caught_before_training(claim: str, when: str) -> None:
    """A flag set after the plug-in was added is a conflict before the first batch, also if set in `setup`."""

    class Late(SimplePlugin):
        def setup(self) -> None:
            if when == "in setup":
                setattr(self.unique_overrides, claim, True)

    trainer, late = make_trainer(), Late("late")
    trainer.register_plugin(late)
    trainer.register_plugin(by_override(claim, "second"))
    if when != "in setup":
        late.unique_overrides = UniquePluginOverrides(**{claim: True})
    model, data = CountingModel(), Preparing()
    with pytest.raises(PluginConflictError, match=f"'second' claims {claim}, already held by 'late'"):
        (trainer.test if when == "before test" else trainer.fit)(model, data)
    assert model.seen == []
    assert data.is_prepared == (when == "in setup"), "what can be known before anything is made is told before"
