"""A model, a plug-in, data and their dataset that raise in one of their methods, on one rank."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any, Final

import torch
import torch._dynamo  # Networks and optimizers import it, in seconds, when they are first used: once here.
from torch import nn
from torch.utils.data import Dataset

from helios import DataModule, Model, Plugin, Trainer
from helios.core.distributed import get_dist_info
from helios.plugins import UniquePluginOverrides

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

MODEL: Final = (
    *("setup", "on_training_start", "on_training_epoch_start", "on_training_batch_start", "train_step"),
    *("on_training_batch_end", "on_training_epoch_end", "on_training_end", "on_validation_start"),
    *("on_validation_batch_start", "valid_step", "on_validation_batch_end", "on_validation_end"),
    *("have_metrics_improved", "should_training_stop", "state_dict", "load_state_dict"),
    *("append_metadata_to_chkpt_name", "append_to_banner"),
    *("on_testing_start", "on_testing_batch_start", "test_step", "on_testing_batch_end", "on_testing_end"),
)
PLUGIN: Final = (
    *("setup", "on_training_start", "on_training_epoch_start", "process_training_batch", "on_training_batch_start"),
    *("on_training_batch_end", "on_training_epoch_end", "on_training_end", "on_validation_start"),
    *("process_validation_batch", "on_validation_end", "should_training_stop", "state_dict", "load_state_dict"),
    *("on_testing_start", "process_testing_batch", "on_testing_end"),
)
DATA: Final = ("setup", "teardown", "train_dataloader", "valid_dataloader", "test_dataloader")
SAMPLES: Final = ("__len__", "__getitem__")
PLACES: Final = (
    *(f"model.{name}" for name in MODEL),
    *(f"plugin.{name}" for name in PLUGIN),
    *(f"data.{name}" for name in DATA),
    *(f"samples.{name}" for name in SAMPLES),
)
ON_RANK_ZERO: Final = ("model.append_metadata_to_chkpt_name", "model.append_to_banner")
"""What no other rank calls."""


class Broken(Exception):  # noqa: N818 - what breaks here is no error of anybody's.
    """What is raised."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Raises at a place, on a rank.

    Attributes:
        folder: where it is written when that was.
        place: where.
        rank: on which rank.
    """

    folder: Path
    place: str
    rank: int

    def at(self, place: str) -> None:
        if place == self.place and get_dist_info().rank == self.rank:
            (self.folder / "when").write_text(str(time.monotonic()), encoding="utf-8")
            raise Broken(place)


def raising(part: str, names: Iterable[str]) -> Callable[[type], type]:
    """Return a decorator that has the methods of these names raise where their object's fault says so."""

    def wrap(method: Callable[..., Any], place: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.fault.at(place)
            return method(self, *args, **kwargs)

        return call

    def decorate(cls: type) -> type:
        for name in names:
            setattr(cls, name, wrap(getattr(cls, name), f"{part}.{name}"))
        return cls

    return decorate


@raising("samples", SAMPLES)
class Samples(Dataset[torch.Tensor]):
    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index / 8])


@raising("data", DATA)
class Data(DataModule):
    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault

    def setup(self) -> None:
        samples = Samples(self.fault)
        self._train_dataset = self._create_dataset(samples, {"batch_size": 2})
        self._valid_dataset = self._create_dataset(samples, {"batch_size": 2})
        self._test_dataset = self._create_dataset(samples, {"batch_size": 2})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        del state_dict


@raising("model", MODEL)
class Raising(Model):
    def __init__(self, fault: Fault) -> None:
        super().__init__("raising")
        self.fault = fault

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        self.net = self.wrap(nn.Linear(1, 1))

    def train_step(self, batch: torch.Tensor, state: Any) -> None:
        del state
        self.net.zero_grad()
        loss = self.net(batch).sum()
        loss.backward()
        self._loss_items["loss"] = loss.detach()

    def valid_step(self, batch: torch.Tensor, step: int) -> None:
        del step
        self.net(batch)

    def test_step(self, batch: torch.Tensor, step: int) -> None:
        del step
        self.net(batch)

    def state_dict(self) -> dict[str, Any]:
        return {"net": {name: value.clone() for name, value in self.net.state_dict().items()}}

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        """Load nothing: what it raises is what counts."""


@raising("plugin", PLUGIN)
class Pluggable(Plugin):
    def __init__(self, fault: Fault) -> None:
        super().__init__("raising")
        self.fault = fault
        self.unique_overrides = UniquePluginOverrides(
            training_batch=True, validation_batch=True, testing_batch=True, should_training_stop=True
        )

    def setup(self) -> None:
        """Set nothing up."""


def run(fault: Fault, ranks: int | None) -> None:
    """Train and test into the fault; with a checkpoint to be loaded, if that is what is to fail."""
    root = fault.folder / "checkpoints"
    if fault.place.endswith("load_state_dict"):
        _run(dataclasses.replace(fault, place="nowhere"), ranks, root, epochs=1)
    _run(fault, ranks, root, epochs=2)


def _run(fault: Fault, ranks: int | None, root: Path, epochs: int) -> None:
    trainer = Trainer(
        total_steps=epochs,
        valid_frequency=1,
        chkpt_frequency=1,
        chkpt_root=root,
        early_stop_cycles=5,
        print_frequency=1,
        num_processes=ranks,
        use_cpu=True if ranks is None else None,
    )
    trainer.register_plugin(Pluggable(fault))
    model, data = Raising(fault), Data(fault)
    trainer.fit(model, data)
    if epochs > 1:
        trainer.test(model, data)
