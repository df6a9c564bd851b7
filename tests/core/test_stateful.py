from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helios.core.plain import decode, encode
from helios.core.stateful import (
    AttributeStates,
    ensure_same_names,
    ensure_state_dict,
    get_state,
    is_stateful,
    networks_of,
    set_state,
    unwrap_module,
)
from helios.core.timing import AverageTimer
from helios.errors import ArgumentTypeError, CheckpointMismatchError
from helios.testing import are_equal

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make every object's state, drawn at random, differ from the next one's in every run of the tests."""
    torch.manual_seed(3)


class Wrapped(nn.Module):
    """As torch.compile wraps a network, without compiling it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def trained_adam() -> torch.optim.Optimizer:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight], lr=float(torch.rand(())))
    weight.grad = torch.rand(2)
    optimizer.step()
    return optimizer


def used_scheduler() -> Any:
    scheduler = torch.optim.lr_scheduler.StepLR(trained_adam(), step_size=1)
    for _ in range(int(torch.randint(1, 5, ()))):
        scheduler.optimizer.step()
        scheduler.step()
    return scheduler


def used_scaler() -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=float(torch.randint(1, 99, ())))
    scaler.scale(torch.ones(1))
    return scaler


def used_average() -> AveragedModel:
    average = AveragedModel(nn.Linear(2, 1))
    average.update_parameters(nn.Linear(2, 1))
    return average


def used_timer() -> AverageTimer:
    timer = AverageTimer()
    with timer:
        pass
    return timer


def torch_generator() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(0, 2**31, ())))


def python_generator() -> random.Random:
    generator = random.Random(float(torch.rand(())))
    generator.gauss(0, 1)  # Leaves another one cached.
    return generator


STATEFUL: list[Callable[[], Any]] = [
    lambda: nn.Linear(2, 2),
    lambda: nn.DataParallel(nn.Linear(2, 2)),
    lambda: Wrapped(nn.Linear(2, 2)),
    trained_adam,
    used_scheduler,
    used_scaler,
    used_average,
    used_timer,
    torch_generator,
    lambda: np.random.default_rng(int(torch.randint(0, 2**31, ()))),
    lambda: np.random.Generator(np.random.Philox(int(torch.randint(0, 2**31, ())))),
    lambda: np.random.Generator(np.random.MT19937(int(torch.randint(0, 2**31, ())))),
    python_generator,
    lambda: [nn.Linear(1, 1), nn.Linear(1, 2)],
    lambda: (nn.Linear(1, 1), "text"),
    lambda: {"a": [nn.Linear(1, 1)], "b": trained_adam(), "c": 3},
]


@pytest.mark.parametrize("make", STATEFUL)
def test_the_state_of_anything_stateful_comes_back(make: Callable[[], Any]) -> None:
    """SPEC E5: modules, optimizers, schedulers, scalers, averages, generators and collections give and take states."""
    first, second = make(), make()
    assert is_stateful(first)
    state = decode(encode(get_state(first)))
    assert not are_equal(get_state(second), state), "the two must differ, or the test shows nothing"
    set_state(second, state, "second")
    assert are_equal(get_state(second), state)


@pytest.mark.parametrize("value", [1, "a", None, torch.ones(1), [1, 2], {"a": 1}, {}, nn.Linear, object()])
def test_other_things_have_no_state(value: object) -> None:
    """SPEC E5: numbers, tensors, plain containers, classes and foreign objects are not stateful."""
    assert not is_stateful(value)
    assert get_state(value) is None


def test_generators_go_on_with_what_was_cached() -> None:
    """SPEC E5: Python's cached Gaussian and NumPy's spare half word are part of a generator's state."""
    python, numpy = random.Random(1), np.random.default_rng(1)
    python.gauss(0, 1)
    numpy.integers(9, dtype=np.uint32)
    states = get_state(python), get_state(numpy)
    expected = python.gauss(0, 1), numpy.integers(2**31, dtype=np.uint32)
    twins = random.Random(2), np.random.default_rng(2)
    for twin, state in zip(twins, states, strict=True):
        set_state(twin, state, "twin")
    assert (twins[0].gauss(0, 1), twins[1].integers(2**31, dtype=np.uint32)) == expected


def test_wrappers_leave_no_trace_in_the_names() -> None:
    """SPEC E5: a wrapped network is saved under the names of the network itself, and loads the other way round."""
    plain = nn.Linear(1, 1)
    for wrap in (nn.DataParallel, Wrapped, lambda module: nn.DataParallel(Wrapped(module))):
        wrapped = wrap(nn.Linear(1, 1))
        assert list(get_state(wrapped) or ()) == ["weight", "bias"]
        set_state(wrapped, get_state(plain), "wrapped")
        assert torch.equal(unwrap_module(wrapped).weight, plain.weight)  # type: ignore[arg-type]  # it is a Linear


def test_wrappers_within_a_network_leave_no_trace_either() -> None:
    """SPEC E5: an average of a wrapped network, and one with wrapped parts, have the names that they have without.

    They load what was saved without wrappers, and with them, and what Helios wrote when it left the names in. The
    versions of the modules, by which torch knows old states, are where they belong.
    """
    for wrap in (nn.DataParallel, Wrapped, lambda module: Wrapped(nn.DataParallel(module))):

        def average(network: nn.Module) -> nn.Module:
            return nn.Sequential(AveragedModel(network), nn.BatchNorm1d(1))

        # A part of the network is called as wrappers call theirs.
        plain = average(nn.Sequential(nn.Linear(1, 1), AveragedModel(nn.Linear(1, 1))))
        wrapped = average(wrap(nn.Sequential(nn.Linear(1, 1), wrap(AveragedModel(nn.Linear(1, 1))))))
        for state in (get_state(plain), wrapped.state_dict()):
            fresh = average(wrap(nn.Sequential(nn.Linear(1, 1), wrap(AveragedModel(nn.Linear(1, 1))))))
            set_state(fresh, state, "fresh")
            assert list(get_state(fresh) or ()) == list(plain.state_dict())
            versions = [getattr(of, "_metadata", None) for of in (get_state(fresh), plain.state_dict())]
            assert versions[0] == versions[1] is not None
            expected = plain if state is not None and set(state) == set(plain.state_dict()) else wrapped
            assert are_equal(list(fresh.parameters()), list(expected.parameters()))
        set_state(plain, get_state(wrapped), "plain")
        assert are_equal(list(plain.parameters()), list(wrapped.parameters()))


def test_a_wrapped_part_of_another_network_is_refused() -> None:
    """SPEC E5: names that fit nothing are in the message as the checkpoint has them."""
    with pytest.raises(CheckpointMismatchError, match="bias"):
        set_state(AveragedModel(Wrapped(nn.Linear(1, 1, bias=False))), get_state(AveragedModel(nn.Linear(1, 1))), "x")


def test_compiled_networks_are_unwrapped() -> None:
    """SPEC E5: what torch.compile returns is unwrapped to the network that it was given."""
    network = nn.Linear(1, 1)
    compiled = torch.compile(network, backend="eager")
    assert unwrap_module(compiled) is network  # type: ignore[arg-type]  # a module is compiled to a module


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (nn.Linear(2, 2), nn.Linear(3, 2).state_dict()),
        (nn.Linear(2, 2), {"weight": torch.zeros(2, 2)}),
        (torch.Generator(), {"generator": torch.zeros(3, dtype=torch.uint8)}),
        (np.random.default_rng(), {"generator": {"bit_generator": "Philox"}}),
        (random.Random(), {"generator": [3, [1], None]}),
        ([nn.Linear(1, 1)], {0: nn.Linear(1, 1).state_dict(), 1: {}}),
        (trained_adam(), {"nonsense": 1}),
        (used_timer(), []),
    ],
)
def test_a_state_that_does_not_fit_is_a_mismatch(value: Any, state: Any) -> None:
    """SPEC E5: whatever the object raises about a foreign state becomes a mismatch that names the attribute."""
    with pytest.raises(CheckpointMismatchError, match="Model.part") as caught:
        set_state(value, state, "Model.part")
    assert isinstance(caught.value, ValueError)


def test_names_are_compared_both_ways() -> None:
    """A mismatch of names lists what only the checkpoint has and what only the object has."""
    ensure_same_names("x", saved=["a", "b"], present=["b", "a"])
    with pytest.raises(CheckpointMismatchError, match=r"x is not .*checkpoint alone has \['a'\] and only .* \['c'\]"):
        ensure_same_names("x", saved=["a", "b"], present=["b", "c"])


@pytest.mark.parametrize("state", [None, [], "a"])
def test_a_state_dict_must_be_a_dict(state: Any) -> None:
    """What is no dictionary is refused, by the name of its owner."""
    with pytest.raises(ArgumentTypeError, match=rf"Foo.state_dict\(\) returned a {type(state).__name__}"):
        ensure_state_dict(state, "Foo")


class Owner:
    def __init__(self) -> None:
        self.base = 0
        self._attribute_states = AttributeStates(self, ignore=frozenset({"base"}))
        self.net = nn.Linear(1, 1)
        self.path = "somewhere"
        self.counter = 0
        self.table = np.zeros(3)
        self.mean = torch.zeros(2)
        self.history: list[float] = []
        self.anything = object()
        self._attribute_states.mark()

    @property
    def states(self) -> AttributeStates:
        return self._attribute_states


def test_only_what_changed_is_saved() -> None:
    """SPEC E5: of plain attributes those are saved that changed since `setup`; objects that are not plain never are."""
    owner = Owner()
    assert list(owner.states.collect()) == ["net"]
    owner.base = owner.counter = 3
    owner.mean.add_(1)
    owner.history.append(0.5)
    owner.late = {"a": 1}  # type: ignore[attr-defined]  # made after setup, as a hook may
    state = owner.states.collect()
    assert list(state) == ["net", "plain attributes"]
    assert are_equal(
        state["plain attributes"], {"counter": 3, "mean": torch.ones(2), "history": [0.5], "late": {"a": 1}}
    )


def test_changed_attributes_come_back() -> None:
    """SPEC E5: networks and changed attributes come back, one that did not exist in `setup` too; the rest is as new."""
    owner, twin = Owner(), Owner()
    owner.counter, owner.table = 3, np.ones(3)
    owner.late = {"a": 1}  # type: ignore[attr-defined]  # made after setup, as a hook may
    twin.path = "elsewhere"
    twin.states.restore(decode(encode(owner.states.collect())))
    assert torch.equal(twin.net.weight, owner.net.weight)
    assert (twin.counter, twin.path, twin.table.tolist()) == (3, "elsewhere", [1.0] * 3)
    assert vars(twin)["late"] == {"a": 1}
    twin.states.restore(Owner().states.collect())
    assert twin.counter == 3, "what was not saved is left alone"


def test_a_removed_or_new_network_is_a_mismatch() -> None:
    """SPEC E5: the stateful attributes must be those of the checkpoint, unless only networks are set up."""
    owner, twin = Owner(), Owner()
    twin.extra = nn.Linear(1, 1)  # type: ignore[attr-defined]  # the point
    with pytest.raises(CheckpointMismatchError, match=r"Owner is not what was saved: only the object has \['extra'\]"):
        twin.states.restore(owner.states.collect())
    with pytest.raises(CheckpointMismatchError, match=r"the checkpoint alone has \['extra'\]"):
        owner.states.restore(twin.states.collect())
    owner.counter = 5
    owner.states.restore({**twin.states.collect(), "plain attributes": {"counter": 1}}, partial=True)
    assert torch.equal(owner.net.weight, twin.net.weight)
    assert owner.counter == 5


def test_networks_are_found_in_collections() -> None:
    """SPEC E5: `networks_of` finds networks in lists and dictionaries and names them by their place."""
    owner = Owner()
    owner.more = [nn.Linear(1, 1), {"a": nn.Identity()}]  # type: ignore[attr-defined]  # the point
    assert list(networks_of(owner)) == ["net", "more[0]", "more[1][a]"]
