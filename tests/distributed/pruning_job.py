"""A study whose trials train on all ranks together. Who prepares data, and where each rank is, is noted in a file."""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path
from typing import Any

import optuna

from helios import Trainer
from helios.core.distributed import get_dist_info
from helios.plugins.optuna import OptunaPlugin, run_study
from tests.docs.guide_optuna import table
from tests.plugins.optuna.studies import Data, Net, StudySpec

TRIALS = 6


class NotedData(Data):
    """Data of the tests' studies, that takes longer to be prepared on the second of two hosts."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._notes = folder / "notes"

    def prepare_data(self) -> None:
        host = socket.gethostname()
        if host.endswith("-b"):
            time.sleep(0.2)
        self._note("prepared", host)

    def setup(self) -> None:
        super().setup()
        info = get_dist_info()
        place = [info.rank, info.world_size, info.local_rank, info.local_world_size]
        seen = [self.rank, self.trainer.local_rank, self.is_distributed, str(self.device)]
        self._note("set up", socket.gethostname(), *place, *seen)

    def _note(self, *entry: Any) -> None:
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(entry)}\n")


def search(folder: Path, ranks: int | None = None) -> list[Any]:
    """Run the study on as many spawned ranks, or on those that `torchrun` has started, and return its table."""

    def objective(trial: optuna.Trial) -> float:
        trainer = Trainer(
            run_name="study",
            total_steps=3,
            valid_frequency=1,
            enable_progress_bar=True,
            enable_file_logging=True,
            log_path=folder,
            num_processes=ranks,
        )
        model, plugin = Net(StudySpec()), OptunaPlugin(trial, "loss")
        plugin.configure_trainer(trainer)
        plugin.configure_model(model)
        assert trainer.fit(model, NotedData(folder))
        plugin.check_pruned()
        return float(trainer.queue.get()["loss"])

    def make_study() -> optuna.Study:
        return optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            sampler=optuna.samplers.TPESampler(seed=7, n_startup_trials=2),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0),
        )

    return table(run_study(make_study, objective, TRIALS))


if __name__ == "__main__":
    rows = search(Path(sys.argv[1]))
    Path(sys.argv[1], f"table-{get_dist_info().rank}").write_text(json.dumps(rows), encoding="utf-8")
