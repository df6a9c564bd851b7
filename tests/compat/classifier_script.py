"""A script in the style of the classifier tutorial of helios-ml 1.x: every name and argument is used as it is there."""

from __future__ import annotations

import hashlib
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import nn

import helios.core as hlc
import helios.data as hld
import helios.model as hlm
import helios.nn as hlnn
import helios.optim as hlo
import helios.plugins as hlp
import helios.trainer as hlt
from helios import losses, scheduler
from helios.core import logging, rng

SAMPLES = 96


@hld.DATASET_REGISTRY.register
class Blobs(torch.utils.data.Dataset[Any]):
    """Images of 4 classes: noise with one bright quarter."""

    def __init__(self, first: int) -> None:
        generator = np.random.default_rng(first)
        self.labels = np.arange(SAMPLES) % 4
        self.images = generator.integers(0, 80, (SAMPLES, 8, 8, 3), dtype=np.uint8)
        for image, label in zip(self.images, self.labels, strict=True):
            row, column = 4 * (label // 2), 4 * (label % 2)
            image[row : row + 4, column : column + 4] += 120
        self.to_tensor = hld.transforms.ToImageTensor()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = self.to_tensor(self.images[index])
        return image + 0.05 * torch.randn(image.shape), int(self.labels[index])


class BlobsData(hld.DataModule):
    """Training, validation and test data."""

    def prepare_data(self) -> None:
        """Download nothing."""

    def setup(self) -> None:
        params = hld.DataLoaderParams()
        params.drop_last = True
        params.batch_size = 8
        params.shuffle = True
        params.num_workers = 0
        params.random_seed = rng.get_default_seed()
        self._train_dataset = self._create_dataset(hld.create_dataset("Blobs", 0), params)
        for_testing = {"batch_size": 16, "shuffle": False, "num_workers": 0}
        self._valid_dataset = self._create_dataset(hld.create_dataset("Blobs", 1), for_testing)
        self._test_dataset = self._create_dataset(hld.create_dataset("Blobs", 2), for_testing)


@hlnn.NETWORK_REGISTRY.register
class SmallNet(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Linear(6 * 6 * 6, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(images).relu().flatten(1))  # type: ignore[no-any-return]  # torch has not annotated it


@hlm.MODEL_REGISTRY.register
class Classifier(hlm.Model):
    """Saves its own state, logs running losses, and steps its optimizer by the count of batches."""

    def __init__(self, accumulation_steps: int) -> None:
        super().__init__("classifier")
        self._accumulation_steps = accumulation_steps
        self._metrics = nn.ModuleDict({"accuracy": nn.Identity()})

    def setup(self, fast_init: bool = False) -> None:
        self._net = hlnn.create_network("SmallNet").to(self.device)
        self._criterion = losses.create_loss("CrossEntropyLoss").to(self.device)
        if fast_init:
            return
        self._optimizer = hlo.create_optimizer("SGD", self._net.parameters(), lr=0.05, momentum=0.9)
        self._scheduler = scheduler.create_scheduler("StepLR", self._optimizer, step_size=2, gamma=0.5)

    def load_state_dict(self, state_dict: dict[str, Any], fast_init: bool = False) -> None:
        self._net.load_state_dict(state_dict["net"])
        self._criterion.load_state_dict(state_dict["criterion"])
        if not fast_init:
            self._optimizer.load_state_dict(state_dict["optimizer"])
            self._scheduler.load_state_dict(state_dict["scheduler"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self._net.state_dict(),
            "criterion": self._criterion.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def trained_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        del args, kwargs
        return {"net": self._net.state_dict()}

    def train(self) -> None:
        self._net.train()

    def eval(self) -> None:
        self._net.eval()

    def train_step(self, batch: Any, state: hlt.TrainingState) -> None:
        images, labels = batch
        loss = self._criterion(self._net(images), labels)
        (loss / self._accumulation_steps).backward()
        if state.global_iteration % self._accumulation_steps == 0:
            self._optimizer.step()
            self._optimizer.zero_grad()
        self._loss_items["loss"] = loss
        time.sleep(0.005)

    def on_training_batch_end(self, state: hlt.TrainingState, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if should_log:
            mean = self._running_losses["loss"] / state.running_iter
            logging.get_root_logger().info(f"[{state.global_epoch}, {state.global_iteration:3d}] loss: {mean:.4f}")
            logging.get_tensorboard_writer().add_scalar("loss", mean, state.global_iteration)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        del current_epoch
        self._scheduler.step()

    def on_training_end(self) -> None:
        total, correct = self._val_scores["total"], self._val_scores["correct"]
        digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in self._net.parameters())).hexdigest()
        print(f"accuracy {correct / total:.4f} weights {digest}", flush=True)

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self._val_scores["total"] = 0
        self._val_scores["correct"] = 0

    def valid_step(self, batch: Any, step: int) -> None:
        del step
        images, labels = batch
        self._val_scores["total"] += labels.shape[0]
        self._val_scores["correct"] += int((self._net(images).argmax(dim=1) == labels).sum())

    def on_testing_start(self) -> None:
        super().on_testing_start()
        self._test_scores["total"] = 0
        self._test_scores["correct"] = 0

    def test_step(self, batch: Any, step: int) -> None:
        del step
        images, labels = batch
        self._test_scores["total"] += labels.shape[0]
        self._test_scores["correct"] += int((self._net(images).argmax(dim=1) == labels).sum())

    def on_testing_end(self) -> None:
        print(f"test accuracy {self._test_scores['correct'] / self._test_scores['total']:.4f}", flush=True)


class Halves(hlp.Plugin):
    """Drops the last sample of every batch, as the guide's sample does."""

    plugin_id = "halves"

    def __init__(self) -> None:
        super().__init__(self.plugin_id)
        self._overrides.training_batch = True
        self.batches = 0

    def configure_trainer(self, trainer: hlt.Trainer) -> None:
        self._register_in_trainer(trainer)

    def process_training_batch(self, batch: Any, state: hlt.TrainingState) -> Any:
        self.batches = state.global_iteration
        images, labels = batch
        return images[:-1], labels[:-1]


def main(root: pathlib.Path) -> None:
    """Train and test below a folder."""
    with hlc.ChdirContext(root):
        trainer = hlt.Trainer(
            run_name="blobs",
            train_unit=hlt.TrainingUnit.from_str("epoch"),
            total_steps=8,
            valid_frequency=1,
            chkpt_frequency=1,
            print_frequency=5,
            enable_tensorboard=False,
            enable_file_logging=True,
            enable_progress_bar=False,
            enable_deterministic=True,
            use_cpu=True,
            chkpt_root=root / "chkpt",
            log_path=root / "logs",
        )
        plugin = Halves()
        plugin.configure_trainer(trainer)
        model, datamodule = hlm.create_model("Classifier", 3), BlobsData()
        if trainer.fit(model, datamodule):
            trainer.test(model, datamodule)
            print(f"batches {trainer.plugins['halves'].batches}", flush=True)  # type: ignore[attr-defined]  # that of Halves


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(sys.argv[1]))
