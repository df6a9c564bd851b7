"""Objects whose attributes are captured and restored: what is saved, in which form, and what is refused."""

from __future__ import annotations

import collections
import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helios.checkpoint.plain import dump, encode, load
from helios.checkpoint.state.baseline import ATTRIBUTES
from helios.checkpoint.state.capture import AttributeCapture
from helios.checkpoint.state.states import decode_state, encode_state
from helios.errors import ArgumentTypeError, CheckpointMismatchError
from helios.testing import are_equal
from tests.checkpoint.kinds import Colour, Node, Plain


class Owner:
    """An object with attributes that were made before training, and after."""

    non_persistent_attributes = ("cache",)

    def __init__(self) -> None:
        self.base = 0
        self._helios_capture = AttributeCapture(self, ignore=frozenset({"base"}))
        self.net = nn.Linear(1, 1)
        self.path = "somewhere"
        self.counter = 0
        self.table = np.zeros(3)
        self.mean = torch.zeros(2)
        self.history: list[float] = []
        self.lock = threading.Lock()
        self.anything = object()
        self.cache: dict[str, int] = {}
        self.states.mark()

    @property
    def states(self) -> AttributeCapture:
        return self._helios_capture


def through_a_file(states: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = load(dump(states))
    return loaded


def test_only_what_changed_is_saved() -> None:
    """Networks are always saved, other attributes if they are not as constructed, in a form that anybody can read."""
    owner = Owner()
    assert list(owner.states.collect()) == ["net"]
    owner.base = owner.counter = 3
    owner.mean.add_(1)
    owner.history.append(0.5)
    owner.cache["a"] = 1
    owner.late = {"a": 1}  # type: ignore[attr-defined]  # made after setup, as a hook may
    state = owner.states.collect()
    assert list(state) == ["net", ATTRIBUTES]
    assert are_equal(state[ATTRIBUTES], {"counter": 3, "mean": torch.ones(2), "history": [0.5], "late": {"a": 1}})
    assert owner.states.findings == {}


def test_changed_attributes_come_back() -> None:
    """What has changed comes back; the rest is as the new object has it, and not as the old one had it."""
    owner, twin = Owner(), Owner()
    owner.counter, owner.table = 3, np.ones(3)
    owner.late = {"a": 1}  # type: ignore[attr-defined]  # made after setup, as a hook may
    twin.path = "elsewhere"
    twin.states.mark()
    twin.states.restore(through_a_file(owner.states.collect()))
    assert torch.equal(twin.net.weight, owner.net.weight)
    assert (twin.counter, twin.table.tolist(), vars(twin)["late"]) == (3, [1.0] * 3, {"a": 1})


def test_an_object_that_was_trained_before_goes_back() -> None:
    """What the checkpoint has as constructed is put back, in place, when the object has changed it since."""
    owner, new = Owner(), Owner()
    history = owner.history
    owner.counter, owner.late = 3, 1  # type: ignore[attr-defined]  # made after setup, as a hook may
    owner.history.append(1.0)
    owner.net.eval()
    owner.states.restore(through_a_file(new.states.collect()))
    assert (owner.counter, owner.history, hasattr(owner, "late"), owner.net.training) == (0, [], False, True)
    assert owner.history is history


class Observed(nn.Linear):
    """A layer that notes that its weights were loaded, as layers with an observer do."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.mode = "observing"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.mode = "loaded"


def test_what_loading_changes_in_a_module_is_as_it_was_saved() -> None:
    """An attribute that a module sets when it is loaded is put back: the run that was saved had not loaded it."""
    owner = Owner()
    owner.net = Observed()
    owner.states.forget()
    owner.states.mark()
    owner.states.restore(through_a_file(owner.states.collect()))
    assert owner.net.mode == "observing"


def test_what_is_too_large_to_be_kept_twice_is_refused() -> None:
    """A large attribute that an earlier run has changed, and the checkpoint has as constructed, is an error."""

    class Large(Owner):
        def __init__(self) -> None:
            self.buffer = torch.zeros(300_000)
            super().__init__()

    owner, new = Large(), Large()
    owner.buffer[0] = 1
    with pytest.raises(CheckpointMismatchError, match="Large.buffer was changed by an earlier run .* construct the"):
        owner.states.restore(new.states.collect())


def test_a_second_setup_makes_no_change_of_what_it_makes() -> None:
    """In a later run of the same object, what `setup` makes again is constructed, and what training has left is not."""
    owner = Owner()
    owner.counter = 5
    owner.history = [1.0]
    owner.states.note_before_setup()
    owner.mean = torch.zeros(2)  # As a setup does.
    owner.new = {"made": "by the second setup"}  # type: ignore[attr-defined]  # the point
    owner.states.mark()
    assert are_equal(owner.states.collect()[ATTRIBUTES], {"counter": 5, "history": {"$": "new", "of": [1.0]}})


def test_a_removed_or_new_network_is_a_mismatch() -> None:
    """The parts must be those of the checkpoint, unless only networks are set up."""
    owner, twin = Owner(), Owner()
    twin.extra = nn.Linear(1, 1)  # type: ignore[attr-defined]  # the point
    twin.states.mark()
    with pytest.raises(CheckpointMismatchError, match=r"Owner is not what was saved: only the object has \['extra'\]"):
        twin.states.restore(owner.states.collect())
    with pytest.raises(CheckpointMismatchError, match=r"the checkpoint alone has \['extra'\]"):
        owner.states.restore(twin.states.collect())
    owner.states.restore({**twin.states.collect(), ATTRIBUTES: {"counter": 1}}, partial=True)
    assert torch.equal(owner.net.weight, twin.net.weight)
    assert owner.counter == 1


def test_copies_begin_anew() -> None:
    """A copy of an object, or one in another process, has its attributes, and takes them for constructed."""
    owner = Owner()
    del owner.lock
    owner.counter = 3
    for other in (copy.deepcopy(owner), pickle.loads(pickle.dumps(owner))):
        other.states.mark()
        assert list(other.states.collect()) == ["net"]
        assert other.counter == 3


def test_shared_memory_is_shared_again() -> None:
    """Tensors that are views of one memory still are when they come back."""
    owner, twin = Owner(), Owner()
    whole = torch.arange(4.0)
    owner.whole, owner.part = whole, whole[1:3]  # type: ignore[attr-defined]  # made after setup
    twin.states.restore(through_a_file(owner.states.collect()))
    vars(twin)["whole"].add_(1)
    assert vars(twin)["part"].tolist() == [2.0, 3.0]


def test_a_crafted_checkpoint_makes_nothing_of_foreign_classes() -> None:
    """A checkpoint that names a class of another package is refused, and nothing of that class is called."""
    for name in (["subprocess", "Popen"], ["os", "system"], ["builtins", "eval"], ["torch.nn", "Linear"], ["x", "y"]):
        crafted = {"$": "object", "class": name, "attributes": {"a": 1}}
        twin = Owner()
        with pytest.raises(CheckpointMismatchError, match="which this program has not"):
            twin.states.restore({"net": twin.net.state_dict(), ATTRIBUTES: {"late": crafted}})


@pytest.mark.parametrize(
    "crafted",
    [
        {"$": "nonsense"},
        {"$": "object"},
        {"$": "list", "items": 3},
        {"$": "array", "dtype": "O", "shape": [1], "fortran": False, "of": b"1"},
        {"$": "Decimal", "of": "x"},
        {"$": "generator", "class": "Generator", "of": {"bit_generator": "system"}},
        {"$": "same", "as": "part.nowhere"},
        {"$": "same", "at": "part.nowhere"},
        {"$": "torch", "of": "save"},
        {"$": "enum", "class": ["tests.checkpoint.kinds", "Plain"], "name": "x", "of": None},
        {"$": "defaultdict", "items": [], "factory": "exec"},
    ],
)
def test_a_description_that_describes_nothing_is_a_mismatch(crafted: dict[str, Any]) -> None:
    """What no capture has written is refused with an error of ours."""
    twin = Owner()
    with pytest.raises(CheckpointMismatchError):
        twin.states.restore({"net": twin.net.state_dict(), ATTRIBUTES: {"late": crafted}})


def test_the_state_of_a_users_own_method_keeps_its_types() -> None:
    """What a `state_dict` of the user's returns comes back with its types, cycles included, and is refused by path."""
    cycle: list[Any] = [1]
    cycle.append(cycle)
    state = {
        "scores": collections.defaultdict(list, a=[np.float32(0.1)]),
        "kinds": {Colour.RED: {1, 2}},
        "plain": Plain(1, [2]),
        "cycle": cycle,
        "$": "ours",
    }
    encoded = encode_state(state, "Model")
    encode(encoded)
    back = decode_state(through_a_file(encoded), "Model")
    assert {key: value for key, value in back.items() if key != "cycle"} == {
        key: value for key, value in state.items() if key != "cycle"
    }
    assert type(back["scores"]["a"][0]) is np.float32
    assert back["cycle"][1] is back["cycle"]
    with pytest.raises(
        ArgumentTypeError, match=r"Model.state_dict\(\)\['a'\]\[0\] is the function .*lambda>, which a check"
    ):
        encode_state({"a": [lambda: 0]}, "Model")


def deep(levels: int) -> list[Any]:
    items: list[Any] = []
    for _ in range(levels):
        items = [items]
    return items


@pytest.mark.parametrize("levels", [3, 60, 70, 75, 100, 5000])
def test_deep_nesting_is_saved_or_named(levels: int) -> None:
    """A value that is nested deeply comes back, or is named; a file that could not be read is never written."""
    owner, twin = Owner(), Owner()
    owner.deep = deep(levels)  # type: ignore[attr-defined]  # made after setup
    twin.states.restore(through_a_file(owner.states.collect()))
    depth, items = 0, vars(twin).get("deep", [])
    while items:
        depth, items = depth + 1, items[0]
    assert depth == (0 if owner.states.findings else levels)
    assert list(owner.states.findings) == (["Owner.deep"] if levels > 75 else [])


def test_a_chain_of_objects_is_saved_or_named() -> None:
    """A linked list of objects of a user's own comes back up to a depth, and is named beyond it."""
    for length, is_named in ((20, False), (2000, True)):
        owner, twin = Owner(), Owner()
        node = Node(0)
        for number in range(length):
            node = Node(number, node)
        owner.chain = node  # type: ignore[attr-defined]  # made after setup
        states = owner.states.collect()
        assert bool(owner.states.findings) is is_named
        twin.states.restore(through_a_file(states))
        assert is_named or vars(twin)["chain"].other.number == length - 2
