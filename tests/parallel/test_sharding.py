from __future__ import annotations

import contextlib
import importlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from helios.checkpoint.shard_layout import fit_network, fit_optimizer
from helios.checkpoint.shard_tree import has_shards, is_sharded
from helios.checkpoint.state.fsdp import unsharded
from helios.checkpoint.state.parts import get_state, set_state
from helios.errors import CheckpointMismatchError, ConfigurationError, NotRunningError
from helios.parallel.sharding import shard_network
from helios.ranks.mesh import make_mesh
from helios.testing import are_equal
from tests.ranks.ranks import run_ranks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make_network(seed: int = 0) -> nn.Sequential:
    """Return a network of which no dimension is one that two or three ranks can share evenly, but for one."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.Linear(5, 7), nn.ReLU()), nn.Linear(7, 1))


def make_sharded(seed: int = 0, **options: Any) -> nn.Sequential:
    network = make_network(seed)
    return shard_network(network, make_mesh("cpu"), [network[0], network[1]], **options)


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=0.05)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, rank: int, steps: range) -> None:
    for step in steps:
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + rank))
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()


def whole(value: Any) -> Any:
    """Return a copy of a state with every tensor whole, as all ranks must ask for together."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [whole(item) for item in value]
    if is_sharded(value):
        return value.full_tensor()
    return value.clone() if isinstance(value, torch.Tensor) else value


def state_of(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"network": get_state(network), "optimizer": get_state(optimizer)}


# ------------------------------------------------------------------------------------------------------------ sharding


def test_a_mesh_needs_a_group() -> None:
    """Without a process group there is a clear error, and torch does not create one."""
    with pytest.raises(NotRunningError, match="there is none: call init_dist"):
        make_mesh("cpu")
    assert not dist.is_initialized()


def shard(_: int) -> Any:
    network = make_network()
    mesh = make_mesh("cpu")
    inner = next(network[1].children())
    # The outer unit before the inner one, and the network itself among them: the order is not the caller's business.
    returned = shard_network(network, mesh, [network[1], network, inner], reshard_after_forward=False)
    before = network(torch.ones(2, 3)).tolist()
    return {
        "is same": returned is network,
        "mesh": (mesh.size(), mesh.ndim, mesh.device_type),
        "sharded": [is_sharded(parameter) for parameter in network.state_dict().values()],
        "output": before,
        "units": [type(module).__name__ for module in network.modules()],
    }


def test_a_network_is_sharded_unit_by_unit(tmp_path: Path) -> None:
    """All parameters become sharded, inner units before outer ones; the network computes what it did."""
    for told in run_ranks(tmp_path, 2, shard):
        assert told["is same"]
        assert told["mesh"] == (2, 1, "cpu")
        assert told["sharded"] == [True] * 6
        assert told["units"] == ["FSDPSequential", "Linear", "FSDPSequential", "FSDPLinear", "ReLU", "Linear"]
        assert told["output"] == make_network()(torch.ones(2, 3)).tolist()


@pytest.mark.usefixtures("alone")
def test_a_unit_is_a_part_of_the_network() -> None:
    """A module of another network is refused before anything is sharded, and options reach fully_shard."""
    network = make_network()
    with pytest.raises(ConfigurationError, match="the unit Linear is no part of the Sequential"):
        shard_network(network, make_mesh("cpu"), [network[0], make_network()[0]])
    assert not has_shards(network.state_dict())
    with pytest.raises(TypeError, match="no_such_option"):
        shard_network(network, make_mesh("cpu"), no_such_option=1)


# ------------------------------------------------------------------------------------------------- whole on every rank


def validate(rank: int, mode: str, when: int, options: dict[str, Any]) -> Any:
    """Train; after `when` steps, if the mode is one without sharding, make a pass under no_grad on rank 0 only."""
    # Of this one the root has no parameters of its own: its last unit is the first that a backward pass needs.
    network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    shard_network(network, make_mesh("cpu"), list(network), **options)
    optimizer = make_optimizer(network)
    train(network, optimizer, rank, range(when))
    outputs = []
    if mode == "whole":
        with unsharded([network, nn.Linear(1, 1), network]), torch.no_grad():
            outputs = [network(torch.full((1, 3), float(i))).tolist() for i in range(1 - rank)]
    before = [group.post_forward_mesh_info is not None for group in groups_of(network)]
    sharded = [is_sharded(parameter) for parameter in network.parameters()]
    train(network, optimizer, rank, range(when, 3))
    return outputs, before, sharded, whole(state_of(network, optimizer))


def groups_of(network: nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415 - in the ranks alone.

    modules = [module for module in network.modules() if isinstance(module, FSDPModule)]
    return [group for module in modules for group in module._get_fsdp_state()._fsdp_param_groups]


@pytest.mark.parametrize("when", [0, 2])
@pytest.mark.parametrize("options", [{}, {"reshard_after_forward": False}])
def test_whole_networks_need_no_other_rank(tmp_path: Path, when: int, options: dict[str, Any]) -> None:
    """A forward pass on rank 0 only, before or during training, does not change the bits of training."""
    with_it = run_ranks(tmp_path, 2, validate, "whole", when, options)
    without = run_ranks(tmp_path, 2, validate, "sharded", when, options)
    assert [len(outputs) for outputs, *_ in with_it] == [1, 0]
    for (_, reshards, sharded, state), (_, reshards_too, _, state_too) in zip(with_it, without, strict=True):
        assert reshards == reshards_too == [not options] * 3
        assert sharded == [True] * 6
        assert are_equal(state, state_too)


@contextlib.contextmanager
def count_gathers() -> Iterator[list[None]]:
    room = importlib.import_module("torch.distributed.fsdp._fully_shard._fsdp_param_group")
    gathers: list[None] = []
    gather = room.foreach_all_gather

    def count(*args: Any, **kwargs: Any) -> Any:
        gathers.append(None)
        return gather(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "foreach_all_gather", count)
        yield gathers


def pass_in_peace(rank: int) -> Any:
    """Count the collectives of passes in the context, then see how the root behaves, which no setting names."""
    network = make_sharded()
    with torch.inference_mode(), count_gathers() as gathers, unsharded([network]):
        entered = len(gathers)
        for _ in range(3):
            network(torch.ones(1, 3))
        passed = len(gathers)
    train(network, make_optimizer(network), rank, range(1))
    with torch.no_grad():
        network(torch.ones(1, 3))
    root, *others = groups_of(network)
    return entered, passed, root.is_unsharded, [group.is_unsharded for group in others]


def test_passes_of_whole_networks_need_no_communication(tmp_path: Path) -> None:
    """All communication happens on entering, also in inference mode; afterwards only the root stays unsharded."""
    for entered, passed, root, others in run_ranks(tmp_path, 2, pass_in_peace):
        assert entered == passed == 3
        assert (root, others) == (True, [False, False])


@pytest.mark.usefixtures("alone")
def test_networks_are_sharded_again_whatever_happens() -> None:
    """An error inside leaves the networks as they were."""
    network = make_sharded(reshard_after_forward=True)
    with pytest.raises(ZeroDivisionError), unsharded([network]):
        assert not any(is_sharded(parameter) for parameter in network.parameters())
        raise ZeroDivisionError
    assert all(is_sharded(parameter) for parameter in network.parameters())
    assert all(group.post_forward_mesh_info is not None for group in groups_of(network))


# -------------------------------------------------------------------------------------------------------------- states


def exchange_states(rank: int, plain: dict[str, Any]) -> Any:
    """Take a state of whole tensors into a sharded network, and that one's into a whole network."""
    sharded = make_sharded(seed=1)
    optimizer = make_optimizer(sharded)
    set_state(sharded, plain["network"], "network")
    set_state(optimizer, plain["optimizer"], "optimizer")
    if rank == 0:
        fit_network(plain["network"], sharded)  # For which it needs nobody.
    given = whole(state_of(sharded, optimizer))
    parts = [(is_sharded(item), item.to_local().untyped_storage().nbytes()) for item in moments(optimizer)]
    train(sharded, optimizer, rank, range(3, 5))
    trained = state_of(sharded, optimizer)
    single = make_network(seed=2)
    single_optimizer = make_optimizer(single)
    set_state(single, trained["network"], "network")
    set_state(single_optimizer, trained["optimizer"], "optimizer")
    assert not has_shards(state_of(single, single_optimizer))
    return given, parts, whole(trained), state_of(single, single_optimizer)


def moments(optimizer: torch.optim.Optimizer) -> list[Any]:
    return [state["exp_avg"] for state in optimizer.state_dict()["state"].values()]


def test_states_fit_whatever_was_sharded(tmp_path: Path) -> None:
    """A state of one process is loaded into sharded networks and optimizers, and back, to the bit."""
    network = make_network()
    optimizer = make_optimizer(network)
    train(network, optimizer, 0, range(3))
    plain = state_of(network, optimizer)
    for given, parts, trained, single in run_ranks(tmp_path, 2, exchange_states, plain):
        assert are_equal(given, whole(plain))
        assert all(is_shard for is_shard, _ in parts)
        # A rank holds its part of the moments and no more: 35 numbers of 7 rows, one of 4 and one of 3 rows, say.
        assert sum(size for _, size in parts) < 4 * 0.8 * sum(p.numel() for p in network.parameters())
        assert are_equal(trained, whole(single))
        assert not are_equal(trained, whole(plain))


@pytest.mark.usefixtures("alone")
def test_a_state_keeps_its_version_and_its_other_tensors() -> None:
    """The version of a module's state, buffers, counts of steps and tensors of other shapes pass through."""
    network = shard_network(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), make_mesh("cpu"))
    saved = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    fitted = fit_network(saved, network)
    assert fitted._metadata == saved._metadata  # type: ignore[attr-defined]  # torch's own attribute
    assert [name for name, value in fitted.items() if is_sharded(value)] == [n for n, _ in network.named_parameters()]
    parameter = nn.Parameter(network.state_dict()["0.weight"])
    optimizer = torch.optim.AdamW([parameter])
    extra = {"step": torch.ones(2, 2), "exp_avg": torch.ones(2, 2), "rows": torch.ones(2), "list": [torch.ones(2, 2)]}
    state = {"state": {0: extra}, "param_groups": optimizer.state_dict()["param_groups"]}
    fitted = fit_optimizer(state, optimizer)["state"][0]
    assert {name: has_shards(value) for name, value in fitted.items()} == {
        "step": False,
        "exp_avg": True,
        "rows": False,
        "list": True,
    }


@pytest.mark.usefixtures("alone")
def test_a_state_of_another_network_is_refused() -> None:
    """An unsharded state with other shapes or parameters is refused by a sharded network or optimizer."""
    network = make_sharded()
    with pytest.raises(CheckpointMismatchError, match="size mismatch"):
        set_state(network, nn.Sequential(nn.Linear(1, 1)).state_dict(), "network")
    other = make_optimizer(nn.Linear(1, 1))
    with pytest.raises(CheckpointMismatchError, match="doesn't match the size of optimizer's group"):
        set_state(make_optimizer(network), get_state(other), "optimizer")


SCRIPT = """
import sys
import helios, helios.checkpoint.shard_layout, helios.checkpoint.shard_files
from helios.checkpoint.state.fsdp import unsharded
from helios.checkpoint.shard_tree import has_shards, is_sharded
import torch
with unsharded([torch.nn.Linear(1, 1)]):
    assert not is_sharded(torch.ones(1)) and not has_shards({"a": [torch.ones(1)]})
heavy = ("torch.distributed.tensor", "torch.distributed.fsdp", "torch.distributed.checkpoint", "safetensors")
print([name for name in heavy if name in sys.modules])
"""


def test_who_does_not_shard_loads_nothing_for_it() -> None:
    """Neither the import nor a search for shards loads torch's packages for sharding, or safetensors."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True, text=True)
    assert done.stdout == "[]\n"
