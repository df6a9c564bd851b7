"""Runs under `torchrun`, where every rank calls `fit` by itself; this module is what the ranks run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helios.core.distributed import get_dist_info
from helios.errors import RankFailedError
from tests.distributed import reports, torchrun
from tests.distributed.parts import PATIENCE, Stop, Trouble, TroubledData, TroubledModel, TroubledPlugin
from tests.distributed.reports import PreparedData, Reporting
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable


TROUBLES = [(1, "Broken"), (0, "Broken"), (1, "Stop"), (1, "Unportable")]


def fit_and_fail(folder: Path) -> list[Any]:
    """Fail in several ways, one after the other, and return what is raised; the last run is well."""
    told: list[Any] = []
    for number, (rank, how) in enumerate(TROUBLES):
        trouble = Trouble(folder / str(number), "hook", rank, how)
        trainer = make_trainer(enable_file_logging=True, log_path=trouble.folder)
        TroubledPlugin(trouble, Stop).configure_trainer(trainer)
        # The model is kept, and with it all that its network has to do with the other rank.
        with pytest.raises(Exception, match="trouble in hook") as caught:
            trainer.fit(TroubledModel(trouble), TroubledData(trouble, workers=0))
        error = caught.value
        told.append([type(error).__name__, getattr(error, "rank", None), type(error.__cause__).__name__, str(error)])
    told.append(make_trainer().fit(CountingModel(), ListData()))
    return told


def fit_twice(folder: Path) -> list[Any]:
    """Train twice with one trainer and once with another; return what is in the queue and in the metrics after each.

    Before that, a run fails that has put something into the queue.
    """
    told: list[Any] = []
    model, trainer = Reporting(reports.put_and_raise), make_trainer()
    with pytest.raises((KeyError, RankFailedError), match="after all"):
        trainer.fit(model, ListData())
    for number in range(3):
        if number == 2:
            trainer = make_trainer(random_seed=7)
        model = Reporting(reports.put_metrics, f"model {number}")
        assert trainer.fit(model, PreparedData(folder / "data"))
        items = [trainer.queue.get() for _ in range(trainer.queue.qsize())]
        told.append({"items": items, "metrics": dict(model.metrics), "weight": model.weight})
    assert trainer.test(model, ListData())
    told.append(model.metrics["tested"])
    return told


def run_job(what: str, folder: Path) -> list[list[Any]]:
    """Run a job of two ranks, and return what each of them has told."""
    with torchrun.start("test_jobs", [what, str(folder)], folder=folder) as job:
        assert job.wait(PATIENCE) == 0, job.output()
    return [json.loads((folder / f"told-{rank}").read_text(encoding="utf-8")) for rank in range(2)]


def test_an_error_is_raised_where_it_happens_and_reported_elsewhere(tmp_path: Path) -> None:
    """The failed rank raises its own error, the other one an error that names it; later runs work."""
    for number in range(len(TROUBLES)):
        (tmp_path / str(number)).mkdir()
    told = run_job("fit_and_fail", tmp_path)
    for number, (rank, kind) in enumerate(TROUBLES):
        own, other = told[rank][number], told[1 - rank][number]
        log = (tmp_path / str(number) / "helios.log").read_text(encoding="utf-8")
        assert own == [kind, None, "NoneType", "trouble in hook"]
        if kind == "Stop":
            assert other == ["Stop", None, "RankFailedError", "trouble in hook"]
            assert "ERROR" not in log
            continue
        # No class is looked up for what stands in a store, unless it is registered.
        assert other[:3] == ["RankFailedError", rank, "NoneType"]
        assert f"failed first: tests.distributed.parts.{kind}: trouble in hook" in other[3]
        assert ", in on_training_batch_end\n" in other[3]
        assert log.count("ERROR") == 1
        assert ", in on_training_batch_end\n" in log
    assert [each[len(TROUBLES)] for each in told] == [True, True]


def test_every_rank_has_the_results_of_all(tmp_path: Path) -> None:
    """Items of any rank are returned on every rank after each of several runs; those of a failed run are not."""
    (tmp_path / "data").mkdir()
    told = run_job("fit_twice", tmp_path)
    for number in range(3):
        first, second = told[0][number], told[1][number]
        assert first["items"] == second["items"]
        assert [item[:2] for item in first["items"]] == [[f"model {number}", rank] for rank in range(2)]
        assert [item[2] for item in first["items"]] == [first["weight"], second["weight"]]
        assert first["metrics"] == {"rank": 0}
        assert second["metrics"] == {"rank": 1}
    assert [item[2] for item in told[0][0]["items"]] == [item[2] for item in told[0][1]["items"]]
    assert told[0][2]["weight"] not in {told[0][0]["weight"], told[1][0]["weight"]}
    assert [each[3] for each in told] == [each[2]["weight"] for each in told], "each rank tests what it has trained"
    marks = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert [mark.rpartition("-")[0] for mark in marks] == ["prepared-0", "prepared-1", "prepared-2"]
    assert len({mark.rpartition("-")[2] for mark in marks}) == 1, "always on the same rank"


if __name__ == "__main__":
    jobs: dict[str, Callable[[Path], list[Any]]] = {"fit_and_fail": fit_and_fail, "fit_twice": fit_twice}
    results = jobs[sys.argv[1]](Path(sys.argv[2]))
    path = Path(sys.argv[2]) / f"told-{get_dist_info().rank}"
    path.write_text(json.dumps(results), encoding="utf-8")
