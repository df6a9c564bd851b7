from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helios.checkpoint.plain import decode, encode
from helios.checkpoint.state.parts import (
    ensure_same_names,
    ensure_state_dict,
    get_state,
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


STATEFUL: list[Callable[[], Any]] = [
    lambda: nn.Linear(2, 2),
    lambda: nn.DataParallel(nn.Linear(2, 2)),
    lambda: Wrapped(nn.Linear(2, 2)),
    trained_adam,
    used_scheduler,
    used_scaler,
    used_average,
    used_timer,
]


@pytest.mark.parametrize("make", STATEFUL)
def test_the_state_of_anything_stateful_comes_back(make: Callable[[], Any]) -> None:
    """Modules, optimizers, schedulers, scalers and averages give their states, and take them."""
    first, second = make(), make()
    state = decode(encode(get_state(first)))
    assert not are_equal(get_state(second), state), "the two must differ, or the test shows nothing"
    set_state(second, state, "second")
    assert are_equal(get_state(second), state)


def test_wrappers_leave_no_trace_in_the_names() -> None:
    """A wrapped network is saved under the names of the network itself, and loads the other way round."""
    plain = nn.Linear(1, 1)
    for wrap in (nn.DataParallel, Wrapped, lambda module: nn.DataParallel(Wrapped(module))):
        wrapped = wrap(nn.Linear(1, 1))
        assert list(get_state(wrapped) or ()) == ["weight", "bias"]
        set_state(wrapped, get_state(plain), "wrapped")
        assert torch.equal(unwrap_module(wrapped).weight, plain.weight)  # type: ignore[arg-type]  # it is a Linear


def test_wrappers_within_a_network_leave_no_trace_either() -> None:
    """An average of a wrapped network, and one with wrapped parts, have the names that they have without.

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
    """Names that fit nothing are in the message as the checkpoint has them."""
    with pytest.raises(CheckpointMismatchError, match="bias"):
        set_state(AveragedModel(Wrapped(nn.Linear(1, 1, bias=False))), get_state(AveragedModel(nn.Linear(1, 1))), "x")


def test_compiled_networks_are_unwrapped() -> None:
    """What torch.compile returns is unwrapped to the network that it was given."""
    network = nn.Linear(1, 1)
    compiled = torch.compile(network, backend="eager")
    assert unwrap_module(compiled) is network  # type: ignore[arg-type]  # a module is compiled to a module


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (nn.Linear(2, 2), nn.Linear(3, 2).state_dict()),
        (nn.Linear(2, 2), {"weight": torch.zeros(2, 2)}),
        (trained_adam(), {"nonsense": 1}),
        (used_timer(), []),
    ],
)
def test_a_state_that_does_not_fit_is_a_mismatch(value: Any, state: Any) -> None:
    """Whatever the object raises about a foreign state becomes a mismatch that names the attribute."""
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
        self.net = nn.Linear(1, 1)
        self.same = self.net
        self.more: list[Any] = [nn.Linear(1, 1), {"a": nn.Identity()}]
        self.more.append(self.more)
        self.numbers = list(range(10_000))
        self.helper = Helper()


class Helper:
    def __init__(self) -> None:
        self.net = nn.Linear(1, 1)


def test_networks_are_found_in_containers_and_objects() -> None:
    """`networks_of` finds networks in containers and objects of the program's, once each, and names them by place."""
    assert list(networks_of(Owner())) == ["net", "more[0]", "helper.net", "more[1][a]"]
