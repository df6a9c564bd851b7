"""A run whose model, plug-in and data module have every kind of state at once; it kills itself where it is told to.

Usage: messy_job.py OPTIONS, a JSON object: root, steps (a list: one call of `fit` for each, of the same objects),
ranks, kills (the batches at which it is killed), lives (a file that counts the kills), report (a file for each rank),
and a mutation, which breaks the library in this process.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
import signal
import sys
from typing import TYPE_CHECKING, Any

import torch

import helios
from helios.checkpoint.state import details, encoding
from helios.checkpoint.state.anchors import Anchors
from helios.trainer._states import PartStates
from tests.checkpoint.kinds import KINDS, NAMED
from tests.checkpoint.looks import describe

if TYPE_CHECKING:
    from helios import TrainingState

BATCHES = 4


def make(owner: Any) -> None:
    for kind in KINDS.values():
        kind.make(owner)


def change(owner: Any, number: int) -> None:
    for kind in KINDS.values():
        kind.change(owner, number)


def look(owner: Any) -> dict[str, Any]:
    return {name: describe(kind.look(owner)) for name, kind in KINDS.items() if name not in NAMED}


class Data(helios.DataModule):
    def setup(self) -> None:
        make(self)
        data = torch.utils.data.TensorDataset(torch.arange(float(BATCHES)))
        self._train_dataset = self._create_dataset(Curriculum(data), {"batch_size": 1})
        self._valid_dataset = self._create_dataset(data, {"batch_size": 1})


class Curriculum(torch.utils.data.Dataset[Any]):
    """A dataset whose content depends on a level, which the model raises."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.level = 0
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.seen.append(index)
        return self.data[index][0] + self.level


class Watcher(helios.Plugin):
    def __init__(self) -> None:
        super().__init__("watcher")
        self.made_in_init = [0]
        self.best = 0

    def setup(self) -> None:
        make(self)
        self.net_of_model: Any = None

    def on_training_batch_end(self, state: TrainingState) -> None:
        self.made_in_init.append(state.global_iteration)
        self.best = max(self.best, state.global_iteration)
        change(self, state.global_iteration)


class Messy(helios.Model):
    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__("messy")
        self.options = options
        self.made_in_init: list[int] = []
        self.best = 0

    def setup(self, fast_init: bool = False) -> None:
        del fast_init
        make(self)
        self.batches: list[float] = []
        self.unfrozen = torch.nn.Linear(1, 1).requires_grad_(requires_grad=False)

    def on_training_epoch_start(self, current_epoch: int) -> None:
        self.unfrozen.requires_grad_(current_epoch > 1)

    def train_step(self, batch: torch.Tensor, state: TrainingState) -> None:
        del state
        number = int(self.trainer.datamodule.number) if hasattr(self.trainer.datamodule, "number") else 0
        number += 1
        self.trainer.datamodule.number = number
        self._die(number)
        self.batches.append(float(batch))
        self.best = number
        self.made_in_init.append(number)
        self.trainer.datamodule.train_dataset.level = number * 10
        change(self, number)
        change(self.trainer.datamodule, number)
        self._loss_items["loss"] = torch.tensor(number / 3)

    def valid_step(self, batch: list[torch.Tensor], step: int) -> None:
        self._val_scores[str(step)] = (float(batch[0]), self.best)

    def _die(self, number: int) -> None:
        kills, lives = self.options["kills"], pathlib.Path(self.options["lives"])
        life = int(lives.read_text()) if lives.exists() else 0
        if life < len(kills) and kills[life] == number and self.rank == self.options["ranks"] - 1:
            lives.write_text(str(life + 1))
            os.kill(os.getpid(), signal.SIGKILL)

    def on_training_end(self) -> None:
        report = {
            "model": look(self),
            "plugin": look(self.trainer.plugins["watcher"]),
            "datamodule": look(self.trainer.datamodule),
            "common": describe(
                [
                    *(
                        self.batches,
                        self.made_in_init,
                        self.best,
                        self._val_scores,
                        self._loss_items,
                        self._running_losses,
                    ),
                    [parameter.requires_grad for parameter in self.unfrozen.parameters()],
                    *(self.trainer.plugins["watcher"].made_in_init, self.trainer.plugins["watcher"].best),
                    *(self.trainer.datamodule.train_dataset.seen, self.trainer.datamodule.train_dataset.level),
                ]
            ),
        }
        pathlib.Path(f"{self.options['report']}.{self.rank}").write_text(json.dumps(report, sort_keys=True))


def _forget_identity() -> None:
    Anchors.path_of = lambda *_: None  # type: ignore[method-assign]  # the point


def _forget_a_kind() -> None:
    original = encoding.Encoder._encode_sequence

    def as_list(self: Any, value: Any, path: str) -> Any:
        is_deque = isinstance(value, collections.deque)
        return original(self, list(value) if is_deque else value, path)

    encoding.Encoder._encode_sequence = as_list  # type: ignore[method-assign]  # the point


def _forget_modes() -> None:
    details._freeze = lambda *_: None


def _say_nothing() -> None:
    def nothing(self: PartStates) -> None:
        del self

    PartStates._name_findings = nothing  # type: ignore[method-assign]  # the point


MUTATIONS = {
    "identity": _forget_identity,
    "a kind": _forget_a_kind,
    "frozen parameters": _forget_modes,
    "the warning": _say_nothing,
}


def main() -> None:
    options = json.loads(sys.argv[1])
    if "mutation" in options:
        MUTATIONS[options["mutation"]]()
    model, data, plugin = Messy(options), Data(), Watcher()
    for steps in options["steps"]:
        ranks = {"num_processes": options["ranks"]} if options["ranks"] > 1 else {}
        trainer = helios.Trainer(
            train_unit="iteration",
            total_steps=steps,
            chkpt_frequency=options.get("every", 1),
            valid_frequency=3,
            chkpt_root=options["root"],
            use_cpu=True,
            print_banner=False,
            **ranks,
        )
        trainer.register_plugin(plugin)
        trainer.fit(model, data)


if __name__ == "__main__":
    main()
