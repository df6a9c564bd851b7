"""How a network is put together, as it was constructed and as it is now."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from helios.checkpoint.state.capture import AttributeCapture
from helios.checkpoint.state.structure import class_of, describe_structure, find_ties
from helios.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from collections.abc import Callable


class Owner:
    """An object with a network."""

    def __init__(self) -> None:
        self.states = AttributeCapture(self, ignore=frozenset({"states"}))
        self.net: Any = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        self.states.mark()


def double(*arguments: Any) -> Any:
    """Be a hook."""
    return arguments[-1] * 2


CHANGES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "a forward hook": (lambda net: net[1].register_forward_hook(double), "net.1", "has 1 hooks, .* constructed with 0"),
    "a pre-hook": (lambda net: net[0].register_forward_pre_hook(double), "net.0", "has 1 hooks"),
    "a hook of a parameter": (lambda net: net[0].weight.register_hook(double), "net.0", "has 1 hooks"),
    "a hook of the state": (lambda net: net.register_state_dict_post_hook(lambda *_: None), "net", "has 1 hooks"),
    "another class": (lambda net: net.__setitem__(1, nn.Sigmoid()), "net.1", "is a .*Sigmoid now"),
    "one more": (lambda net: net.append(nn.ReLU()), "net", r"has other modules .*\('3'\)"),
    "one less": (lambda net: net.pop(2), "net", r"has other modules .*\('2'\)"),
    "a parametrization": (
        lambda net: nn.utils.parametrizations.weight_norm(net[0]), "net", "has other modules .*0.parametrizations"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_only_the_program_can_make_is_named(change: str) -> None:
    """Hooks, classes and modules that training changes are named by their path; undone, they no longer are."""
    owner = Owner()
    owner.states.collect()
    assert owner.states.findings == {}
    apply, path, reason = CHANGES[change]
    undo = apply(owner.net)
    owner.states.collect()
    (found,) = [reason for where, reason in owner.states.findings.items() if where == f"Owner.{path}"]
    assert re.match(reason, found)
    if isinstance(undo, torch.utils.hooks.RemovableHandle):
        undo.remove()
        owner.states.collect()
        assert owner.states.findings == {}


def test_a_module_of_another_class_is_refused() -> None:
    """A checkpoint of a network with another module than the constructed one is not loaded in part."""
    owner, twin = Owner(), Owner()
    owner.net[1] = nn.Sigmoid()
    with pytest.raises(CheckpointMismatchError, match=r"net\.1 was a .*Sigmoid when it was saved, and is a .*ReLU now"):
        twin.states.restore(owner.states.collect())


def test_a_lazy_module_is_what_it_becomes() -> None:
    """A lazy module that has seen a batch has the class that it had before."""
    lazy = nn.LazyLinear(3)
    before = class_of(lazy)
    lazy(torch.ones(1, 2))
    assert class_of(lazy) == before == "torch.nn.modules.linear.Linear"


def test_hooks_of_libraries_do_not_count() -> None:
    """Hooks that torch registers, such as those of a spectral norm, are not the program's."""
    net = nn.utils.spectral_norm(nn.Linear(2, 2))
    assert net._forward_pre_hooks
    assert describe_structure(net) == {"": ("torch.nn.modules.linear.Linear", 0)}


def test_ties_are_found_within_and_between_networks() -> None:
    """A tensor is held by the first module that has it, also of an earlier network, and tied elsewhere."""
    first: Any
    first, second = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2)
    first[1].weight = first[0].weight
    second.bias = first[1].bias
    holders: dict[int, str] = {}
    assert find_ties(first, "a", holders) == {"1": {"weight": "a.0.weight"}}
    assert find_ties(second, "b", holders) == {"": {"bias": "a.1.bias"}}


def test_a_network_is_tied_and_untied_in_place() -> None:
    """Weights are tied as they were saved, and untied where they were constructed as one."""
    owner, twin = Owner(), Owner()
    owner.net[2].weight = owner.net[0].weight
    twin.states.restore(owner.states.collect())
    assert twin.net[2].weight is twin.net[0].weight
    assert torch.equal(twin.net[0].weight, owner.net[0].weight)
    for each in (owner, twin):  # Constructed as one, as it is now.
        each.states = AttributeCapture(each, ignore=frozenset({"states"}))
        each.states.mark()
    owner.net[2].weight = nn.Parameter(torch.ones(2, 2))
    twin.states.restore(owner.states.collect())
    assert twin.net[2].weight is not twin.net[0].weight
    assert twin.net[2].weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert torch.equal(twin.net[0].weight, owner.net[0].weight)
