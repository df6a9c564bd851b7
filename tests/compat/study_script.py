"""A script in the style of the Optuna tutorial of helios-ml 1.x, over the model of `classifier_script.py`."""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import optuna
import torch

import helios.model as hlm
import helios.optim as hlo
import helios.plugins.optuna as hlpo
import helios.trainer as hlt
from tests.compat.classifier_script import BlobsData, Classifier


@hlm.MODEL_REGISTRY.register
class Tuned(Classifier):
    """Asks the plug-in for the learning rate, and reports the accuracy of each validation."""

    def setup(self, fast_init: bool = False) -> None:
        super().setup(fast_init)
        plugin = self.trainer.plugins[hlpo.OptunaPlugin.plugin_id]
        assert isinstance(plugin, hlpo.OptunaPlugin)
        rate = plugin.trial.suggest_float("lr", 1e-3, 0.2, log=True)
        momentum = plugin.suggest("categorical", "momentum", choices=[0.0, 0.5, 0.9])
        self._optimizer = hlo.create_optimizer("SGD", self._net.parameters(), lr=rate, momentum=momentum)

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Keep the learning rate of the trial."""

    def on_validation_end(self, validation_cycle: int) -> None:
        self.metrics["accuracy"] = self._val_scores["correct"] / self._val_scores["total"]
        plugin = self.trainer.plugins[hlpo.OptunaPlugin.plugin_id]
        assert isinstance(plugin, hlpo.OptunaPlugin)
        plugin.report_metrics(validation_cycle)

    def on_training_end(self) -> None:
        """Print nothing: the study does."""


def main(root: pathlib.Path) -> None:
    """Tune below a folder, and print the table of trials."""

    def make_study() -> optuna.Study:
        return hlpo.resume_study(
            {
                "study_name": "blobs",
                "storage": f"sqlite:///{root / 'study.db'}",
                "load_if_exists": True,
                "direction": "maximize",
                "sampler": hlpo.ReproducibleSampler(optuna.samplers.TPESampler, seed=0),
                "pruner": optuna.pruners.MedianPruner(n_startup_trials=1),
            },
            failed_states=(optuna.trial.TrialState.FAIL, optuna.trial.TrialState.RUNNING),
            backup_study=False,
        )

    def objective(trial: optuna.Trial) -> Any:
        trainer = hlt.Trainer(
            total_steps=2,
            valid_frequency=1,
            chkpt_frequency=1,
            use_cpu=True,
            print_banner=False,
            enable_deterministic=True,
            chkpt_root=root / "chkpt",
        )
        model, datamodule = hlm.create_model("Tuned", 1), BlobsData()
        plugin = hlpo.OptunaPlugin(trial, "accuracy")
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        trainer.fit(model, datamodule)
        plugin.check_pruned()
        return model.metrics["accuracy"]

    study = hlpo.run_study(make_study, objective, 4)
    for trial in study.trials:
        print(trial.number, trial.state.name, trial.values, trial.params, trial.intermediate_values, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(pathlib.Path(sys.argv[1]))
