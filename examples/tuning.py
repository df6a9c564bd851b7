"""Tuning a classifier of handwritten digits with Optuna: `python examples/tuning.py`.

`space.toml` defines the search space. The study is stored in a SQLite file, or in the database of DATABASE_URL. Stop
the script at any time, with Ctrl-C or `kill -9`, and start it again: the interrupted trial is resumed from its last
checkpoint, and the study ends with the same trials as an uninterrupted one. Several processes, started in several
terminals, share the trials. When the study has the requested number of trials, the script only prints the result.
"""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import torch
from optuna.trial import TrialState
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import helios.data as hld
import helios.plugins as hlp
import helios.plugins.optuna as hlpo
import helios.trainer as hlt
from classifier import Classifier
from helios.core.distributed import get_world_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SPACE = hlpo.SearchSpace.from_toml(Path(__file__).with_name("space.toml"))
TRIALS = 24
TRAINING = 1_297  # Samples; the other 500 are for validation.
BATCH_SIZE = 32  # Global batch size.
EPOCHS = 8
WARMUP = 2  # Epochs before a trial may be pruned.


class SmallDigits(hld.DataModule):
    """The 1,797 digits of 8x8 pixels in scikit-learn."""

    def setup(self) -> None:
        """Split the digits at random into training and validation data."""
        pixels, digits = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
        labels = torch.from_numpy(digits).long()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        training, validation = order[:TRAINING], order[TRAINING:]
        self._train_dataset = self._create_dataset(
            TensorDataset(images[training], labels[training]),
            {"batch_size": BATCH_SIZE // get_world_size(), "shuffle": True, "drop_last": True},
        )
        self._valid_dataset = self._create_dataset(
            TensorDataset(images[validation], labels[validation]), {"batch_size": 500}
        )


class TunedClassifier(Classifier):
    """The classifier of `classifier.py`, with a network, optimizer and learning rate suggested by the trial."""

    def setup(self, fast_init: bool = False) -> None:
        """Create network, optimizer and scheduler from the suggested values."""
        del fast_init
        chosen = self.trainer.plugins[hlpo.OptunaPlugin].suggest_all(SPACE)
        width, rate = chosen["width"], chosen["learning_rate"]
        network = nn.Sequential(
            *(nn.Conv2d(1, width, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(chosen["dropout"]), nn.Linear(8 * width, 10)),
        )
        self.network = self.wrap(network)
        if chosen["optimizer"] == "sgd":
            self.optimizer = torch.optim.SGD(self.network.parameters(), lr=rate, momentum=chosen["momentum"])
        else:
            self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._scale_learning_rate)

    def on_validation_end(self, validation_cycle: int) -> None:
        """Compute the accuracy and report it, which may prune the trial."""
        super().on_validation_end(validation_cycle)
        self.trainer.plugins[hlpo.OptunaPlugin].report_metrics(validation_cycle)


def find_storage(folder: Path) -> str:
    """Return the URL of the database: that of DATABASE_URL, or a SQLite file in the folder."""
    url = os.environ.get("DATABASE_URL", "")
    scheme, _, rest = url.partition("://")
    if scheme in ("postgres", "postgresql"):
        return f"postgresql+psycopg://{rest}"  # Otherwise SQLAlchemy would load psycopg2.
    return url or f"sqlite:///{folder.absolute() / 'study.db'}"


def load_study(storage: str, name: str) -> optuna.Study:
    """Return the study, which is created if it does not exist."""
    return optuna.create_study(
        storage=storage,
        study_name=name,
        load_if_exists=True,
        direction="maximize",
        sampler=hlpo.ReproducibleSampler(functools.partial(optuna.samplers.TPESampler, n_startup_trials=6), seed=1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=WARMUP),
    )


def make_objective(root: Path, *plugins: hlp.Plugin, ranks: int = 1) -> Callable[[optuna.Trial], float]:
    """Return the objective, which trains the classifier of a trial and returns its accuracy.

    Args:
        root: the folder of the checkpoints; each trial has a folder in it.
        *plugins: additional plug-ins of the trainer.
        ranks: the number of processes that train one trial.
    """

    def objective(trial: optuna.Trial) -> float:
        model, data = TunedClassifier(EPOCHS * (TRAINING // BATCH_SIZE)), SmallDigits()
        trainer = hlt.Trainer(
            total_steps=EPOCHS,
            valid_frequency=1,
            chkpt_frequency=1,
            chkpt_root=root,
            enable_deterministic=True,
            print_banner=False,
            num_processes=ranks,
        )
        for plugin in (hlp.DevicePlugin(), *plugins):
            trainer.register_plugin(plugin)
        plugin = hlpo.OptunaPlugin(trial, "accuracy")
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        trainer.fit(model, data)
        plugin.check_pruned()
        return float(model.metrics["accuracy"])  # The same on all ranks.

    return objective


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print the best trial, and write the report."""
    parser = argparse.ArgumentParser(description="Tune a classifier of handwritten digits.")
    parser.add_argument("--root", type=Path, default=Path("demo-output/tuning"), help="the output folder")
    parser.add_argument("--study", default="digits", help="the name of the study (%(default)s)")
    parser.add_argument("--trials", type=int, default=TRIALS, help="the total number of trials (%(default)s)")
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)  # More threads do not speed up such a small network.
    options.root.mkdir(parents=True, exist_ok=True)
    storage = find_storage(options.root)
    objective = make_objective(options.root / options.study)
    study = hlpo.run_study(lambda: load_study(storage, options.study), objective, options.trials)
    if len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) < options.trials:
        print("stopped by a signal: start again to resume")
        return
    best = study.best_trial
    print(f"best of {len(study.trials)} trials: number {best.number}, accuracy {100 * study.best_value:.2f} %")
    for name, value in best.params.items():
        print(f"  {name}: {value:.4g}" if isinstance(value, float) else f"  {name}: {value}")
    print(f"report: {hlpo.write_report(study, options.root / 'report.html')}")


if __name__ == "__main__":
    main()
