"""Ranks on GPUs that are not there: each is a process with a stand-in of its own, and NCCL is gloo."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from helios import Plugin
from helios.core.distributed import get_local_rank, shutdown_dist
from tests.gpu.runs import OnDevice, Samples, make_trainer
from tests.gpu.tensors import gpus

if TYPE_CHECKING:
    from pathlib import Path

    from helios import Trainer
    from tests.gpu.driver import Driver

_for_good = contextlib.ExitStack()
_backends: list[str | None] = []


def stay_on_gpus(count: int) -> Driver:
    """Let there be GPUs in this process from here on."""
    driver = _for_good.enter_context(gpus(count))
    make_group = dist.init_process_group

    def make_group_of_gloo(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        _backends.append(backend)
        make_group(backend and backend.replace("nccl", "gloo"), *args, **kwargs)

    dist.init_process_group = make_group_of_gloo
    return driver


class Placed(Plugin):
    """Lets there be GPUs in each process that it comes to, before the run begins there."""

    driver: Driver

    def __init__(self, count: int) -> None:
        super().__init__("placed")
        self.count = count

    def setup(self) -> None:
        """Make nothing."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        type(self).driver = stay_on_gpus(self.count)


class Telling(OnDevice):
    """Puts into the queue where it has been, and the weights, as they are."""

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self.metrics["cycle"] = torch.tensor(float(validation_cycle), device=self.device)

    def on_training_end(self) -> None:
        self.trainer.queue.put(tell(self.trainer, self) | {"weights": list(self.net.parameters())})


def tell(trainer: Any, model: OnDevice, driver: Driver | None = None) -> dict[str, Any]:
    """Return where a rank has been."""
    return {
        "rank": trainer.rank,
        "gpu_ids": trainer.gpu_ids,
        "mine": trainer.gpu_ids[get_local_rank()],
        "places": model.notes.places,
        "used": (driver or Placed.driver).used,
        "backend": _backends[-1],
        "drawn": model.notes.drawn,
    }


def find_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def train_under_torchrun(
    rank: int, port: int, named: list[int] | None, root: Path, strategy: str
) -> list[dict[str, Any]]:
    """Train in the environment of torchrun, once to the middle and once to the end; return what this rank has seen."""
    shutdown_dist()
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"})
    driver = stay_on_gpus(4)
    told = []
    for epochs in (1, 2):
        trainer, model = _make(root, named, strategy=strategy, total_steps=epochs), OnDevice()
        assert trainer.fit(model, Samples())
        told.append(tell(trainer, model, driver) | {"current": torch.cuda.current_device(), "tensors": model.tell()})
    trainer, model = _make(root / "whole", named, strategy=strategy, total_steps=2), OnDevice()
    assert trainer.fit(model, Samples())
    told.append(tell(trainer, model, driver) | {"tensors": model.tell()})
    return told


def _make(root: Path, named: list[int] | None, **options: Any) -> Trainer:
    return make_trainer(root, gpus=named, accumulation_steps=2, valid_frequency=1, **options)
