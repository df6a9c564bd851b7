"""The Optuna samples of the plug-in guide that users of Helios 1.x know, and a study of them.

Where the guide prints `...`, a sample is quoted with what takes its place, in a line of its own.
"""

from __future__ import annotations

import textwrap
from typing import Any

import optuna
import torch
from torch import nn

import helios
from helios.plugins.optuna import OptunaPlugin, run_study

# The guide prints `def objective` one step to the left of its imports, and `...` for what is called here.
REGISTRATION = """
import helios.plugins.optuna as hlpo
import optuna

def objective(trial: optuna.Trial) -> float:
       model = make_model()
       datamodule = make_datamodule()
       trainer = make_trainer()

       plugin = hlpo.OptunaPlugin(trial, "accuracy")
       plugin.configure_trainer(trainer)
       plugin.configure_model(model)

       joined(plugin, model, trainer)
"""

SETUP = """
    def setup(self, fast_init: bool = False) -> None:
        plugin = self.trainer.plugins[0]
        assert isinstance(plugin, OptunaPlugin)

        # Assign the tunable parameters so we can log them as hyper-parameters when
        # training ends.
        self._tune_params["l1"] = plugin.trial.suggest_categorical(
            "l1", [2**i for i in range(9)]
        )
        self._tune_params["l2"] = plugin.trial.suggest_categorical(
            "l2", [2**i for i in range(9)]
        )
        self._tune_params["lr"] = plugin.trial.suggest_float("lr", 1e-4, 1e-1, log=True)

        self._net = Net(
            l1=self._tune_params["l1"],  # type: ignore[arg-type]
            l2=self._tune_params["l2"],  # type: ignore[arg-type]
        ).to(self.device)
"""

VALIDATION_END = """
   def on_validation_end(self, validation_cycle: int) -> None:
        self.measure(validation_cycle)
        plugin = self.trainer.plugins[OptunaPlugin.plugin_id]
        assert isinstance(plugin, OptunaPlugin)
        plugin.report_metrics(validation_cycle)
"""

TRAINING_END = """
    def on_training_end(self) -> None:
        accuracy = self.finish()
        # Push the metrics we want to save into the multi-processing queue.
        if self.is_distributed and self.rank == 0:
            assert self.trainer.queue is not None
            self.trainer.queue.put(
                {"accuracy": accuracy, "loss": self._loss_items["loss"].item()}
            )
"""

OBJECTIVE = """
def objective(trial: optuna.Trial) -> float:
        model, datamodule, trainer, plugin = make_parts(trial)
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        trainer.fit(model, datamodule)
        plugin.check_pruned()

        if trainer.queue is None:
            return model.metrics["accuracy"]

        metrics = trainer.queue.get()
        return metrics["accuracy"]
"""

SUGGESTING = """
   def objective(trial: optuna.Trial) -> float:
        val1 = plugin.suggest("categorical", "val1", choices=[1, 2, 3])
        val2 = plugin.suggest("float", "val2", low=0, high=1, log=True)
"""

CHECKPOINTING = """
   def objective(trial: optuna.Trial) -> float:
        checkpoint_sampler(trial, root)
"""

RESTORING = """
   # In your setup code
   sampler = restore_sampler(root)
"""

RESUMING = """
   # In your setup code
   study_args = {
        "study_name": "test_study",
        "storage": "sqlite:///study.db", # <- This is required
        "load_if_exists": True,
   }

   study = resume_study(study_args)
"""


def run_sample(sample: str, **names: Any) -> dict[str, Any]:
    """Run a sample as a module of its own that has these names, and return all names it has then."""
    namespace: dict[str, Any] = {"__name__": "guide", "optuna": optuna, "OptunaPlugin": OptunaPlugin, **names}
    exec(compile(textwrap.dedent(sample), "guide", "exec", dont_inherit=True), namespace)  # noqa: S102 - quoted above.
    return namespace


class Net(nn.Sequential):
    def __init__(self, l1: int, l2: int) -> None:
        super().__init__(nn.Linear(1, l1), nn.ReLU(), nn.Linear(l1, l2), nn.ReLU(), nn.Linear(l2, 1))


class Tuned(helios.Model):
    """What the guide leaves out: one parameter is learned, and the accuracy is known beforehand."""

    setup = run_sample(SETUP, Net=Net)["setup"]
    on_validation_end = run_sample(VALIDATION_END)["on_validation_end"]
    on_training_end = run_sample(TRAINING_END)["on_training_end"]
    _net: Net

    def __init__(self, accuracies: list[float]) -> None:
        super().__init__("tuned")
        self._tune_params: dict[str, Any] = {}
        self._accuracies = accuracies
        self.ends = 0

    def train_step(self, batch: Any, state: helios.TrainingState) -> None:
        del state
        self._loss_items["loss"] = self._net(batch).mean().detach()

    def valid_step(self, batch: Any, step: int) -> None:
        """The accuracy is known beforehand."""

    def measure(self, validation_cycle: int) -> None:
        self.metrics["accuracy"] = self._accuracies[validation_cycle]

    def finish(self) -> float:
        self.ends += 1
        return float(self.metrics["accuracy"])


class Batches(helios.DataModule):
    def setup(self) -> None:
        """There are two ready batches."""

    def train_dataloader(self) -> Any:
        return [torch.ones(2, 1)] * 2, None

    def valid_dataloader(self) -> Any:
        return [torch.ones(2, 1)], None


def make_trainer(**options: Any) -> helios.Trainer:
    return helios.Trainer(**{"total_steps": 3, "valid_frequency": 1, "use_cpu": True, "print_banner": False, **options})


CURVES = [[0.1, 0.5, 0.9], [0.6, 0.7, 0.8], [0.0, 0.0, 0.0], [0.5, 0.8, 0.95]]


def make_study() -> optuna.Study:
    return optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=2),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1),
    )


def run_guide(**options: Any) -> optuna.Study:
    """Run the guide's objective over a study, with a trainer of these options."""

    def make_parts(trial: optuna.Trial) -> tuple[Any, ...]:
        return Tuned(CURVES[trial.number]), Batches(), make_trainer(**options), OptunaPlugin(trial, "accuracy")

    objective = run_sample(OBJECTIVE, make_parts=make_parts)["objective"]
    return run_study(make_study, objective, len(CURVES))


def table(study: optuna.Study) -> list[Any]:
    """Return all that can be told of the study's trials, as plain data."""
    return [
        [trial.number, trial.state.name, trial.values, trial.params, sorted(trial.intermediate_values.items())]
        for trial in study.trials
    ]
