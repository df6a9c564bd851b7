"""Strategies: by name, by instance, and one of a user's own under kills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import helios
from helios.checkpoint.archive import load_archive
from helios.data import DataLoaderParams
from helios.errors import ArgumentTypeError, ConfigurationError, RankFailedError
from helios.parallel import DDPStrategy, FSDPStrategy, SingleProcessStrategy, place_network
from helios.parallel.strategies import as_strategy
from helios.testing import TinyDataModule, TinyModel, are_equal
from helios.trainer import find_last_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from helios import TrainingState


class Marked(DDPStrategy):
    """Wraps networks in DDP, and leaves a file for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return "marked"

    def wrap(self, network: nn.Module, device: torch.device, units: Any, options: Any) -> nn.Module:
        (self.folder / f"wrapped-{torch.distributed.get_rank()}").touch()
        return super().wrap(network, device, units, options)


class Wrapped(TinyModel):
    """Trains what the strategy wraps, and fails at a step."""

    def __init__(self, fails_at: int) -> None:
        super().__init__("wrapped")
        self.fails_at = fails_at

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        self.net = self.wrap(self.net)  # type: ignore[assignment]  # it is called in the same way

    def train_step(self, batch: Any, state: TrainingState) -> None:
        if state.global_iteration == self.fails_at:
            raise ConnectionError
        super().train_step(batch, state)


def train(root: Path, fails_at: int) -> dict[str, Any]:
    """Train on two ranks with a strategy of the user's own; return what the last checkpoint holds."""
    options: dict[str, Any] = {"chkpt_root": root, "print_banner": False, "use_cpu": True, "num_processes": 2}
    trainer = helios.Trainer(
        train_unit="iteration", total_steps=6, chkpt_frequency=2, strategy=Marked(root.parent), **options
    )
    assert trainer.strategy == "marked"
    data = TinyDataModule(24, DataLoaderParams(batch_size=2, shuffle=True))
    if fails_at >= 0:
        with pytest.raises((ConnectionError, RankFailedError)):
            trainer.fit(Wrapped(fails_at), data)
    else:
        assert trainer.fit(Wrapped(fails_at), data)
    path = find_last_checkpoint(root / "wrapped")
    assert path is not None
    return load_archive(path)


def test_a_strategy_of_the_users_own_is_exact(tmp_path: Path) -> None:
    """An instance is sent to the ranks, wraps their networks, and a run that failed is resumed to the same bits."""
    whole = train(tmp_path / "whole", -1)
    assert (tmp_path / "wrapped-0").exists()
    assert (tmp_path / "wrapped-1").exists()
    assert whole["passport"]["strategy"] == "marked"
    train(tmp_path / "cut", 5)
    resumed = train(tmp_path / "cut", -1)
    assert are_equal(resumed["model"], whole["model"])


@pytest.mark.parametrize(("name", "kind"), [("ddp", DDPStrategy), ("fsdp", FSDPStrategy)])
def test_strategies_have_names(name: str, kind: type) -> None:
    """A name makes the strategy, `Trainer.strategy` returns the name, and an instance is taken as it is."""
    assert type(as_strategy(name)) is kind
    assert helios.Trainer(strategy=name).strategy == helios.Trainer(strategy=kind()).strategy == name
    single = SingleProcessStrategy()
    assert as_strategy(single) is single


def test_other_strategies_are_refused() -> None:
    """An unknown name, or an object that is no strategy, raises an error with the known names."""
    with pytest.raises(ConfigurationError, match=r"strategy is 'zero': choose one of 'ddp', 'fsdp', or pass an inst"):
        helios.Trainer(strategy="zero")
    with pytest.raises(ArgumentTypeError, match=r"strategy is 3, a int: pass one of 'ddp', 'fsdp'"):
        helios.Trainer(strategy=3)  # type: ignore[arg-type]  # the point


def test_a_network_on_meta_is_initialized_on_its_device() -> None:
    """Modules on the meta device are reset on the device, each by itself and alike; one that cannot be is named."""
    with torch.device("meta"):
        networks = [nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)) for _ in range(2)]
    for network in networks:
        torch.manual_seed(3)
        place_network(network, torch.device("cpu"))
    assert not any(tensor.is_meta for tensor in networks[0].state_dict().values())
    assert are_equal(dict(networks[0].state_dict()), dict(networks[1].state_dict()))

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1, device="meta"))

    with pytest.raises(ConfigurationError, match="0, a Bare, has 'weight' on meta and no method reset_para"):
        place_network(nn.Sequential(Bare()), torch.device("cpu"))


def test_no_sync_does_nothing_in_one_process() -> None:
    """The documented context for accumulation works without ranks: gradients are added up as without it."""
    model = Wrapped(-1)
    model.setup()
    network = nn.Linear(2, 1)
    for enabled in (True, False):
        with model.no_sync(model.wrap(network), enabled=enabled):
            network(torch.ones(1, 2)).sum().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.tolist() == [[2.0, 2.0]]
