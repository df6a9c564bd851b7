"""Every kind of state, in the model, in a plug-in and in the data module, killed for real and resumed."""

from __future__ import annotations

import contextlib
import functools
import json
import pathlib
import random
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from tests.checkpoint.kinds import KINDS, NAMED

# Of each scenario: the steps of each call of `fit`, the ranks, and the batches at which the run is killed. An epoch has
# four batches, and every batch has a checkpoint.
SCENARIOS: dict[str, tuple[list[int], int, list[int]]] = {
    "in the middle of an epoch": ([7], 1, [3, 7]),
    "at the boundary of epochs": ([7], 1, [5]),
    "in a second fit": ([4, 7], 1, [6]),
    "on two ranks": ([7], 2, [6]),
}
ROOT = pathlib.Path(__file__).parents[2]
OWNERS = ("model", "plugin", "datamodule")


def run(folder: pathlib.Path, steps: list[int], ranks: int, kills: list[int], **extra: str) -> tuple[list[Any], str]:
    """Return what each rank reports, and the log, of a run that is started again whenever it was killed."""
    options = describe_run(folder, steps, ranks, kills) | extra
    log = ""
    for life in range(len(kills) + 1):
        command = [sys.executable, "-m", "tests.checkpoint.messy_job", json.dumps(options)]
        child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        log += child.stderr + child.stdout
        assert (child.returncode == 0) is (life == len(kills)), child.stderr[-4000:]
    return [json.loads((folder / f"report.{rank}").read_text()) for rank in range(ranks)], log


def describe_run(folder: pathlib.Path, steps: list[int], ranks: int, kills: list[int]) -> dict[str, Any]:
    options = {"root": str(folder / "root"), "steps": steps, "ranks": ranks, "kills": kills}
    return options | {"lives": str(folder / "lives"), "report": str(folder / "report")}


@functools.cache
def expected(ranks: int) -> tuple[list[Any], str]:
    """Run what was never killed, once in this process of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        return run(pathlib.Path(folder), [7], ranks, [])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_kind_of_state_survives(scenario: str, tmp_path: pathlib.Path) -> None:
    """Killed and resumed, every kind, in the model, a plug-in and the data module, ends as if it had never been."""
    steps, ranks, kills = SCENARIOS[scenario]
    whole, resumed = expected(ranks)[0], run(tmp_path, steps, ranks, kills)[0]
    for first, second in zip(whole, resumed, strict=True):
        assert set(first["model"]) == set(KINDS) - set(NAMED)
        different = [
            f"{owner}: {kind}" for owner in OWNERS for kind in first[owner] if first[owner][kind] != second[owner][kind]
        ]
        assert different == []
        # Attributes of `__init__`, unfreezing in a hook, scores, losses, and the dataset's own state.
        assert first["common"] == second["common"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutation", ["identity", "a kind", "frozen parameters", "the warning"])
def test_a_capture_that_forgets_is_noticed(mutation: str, tmp_path: pathlib.Path) -> None:
    """With each of these mutations of the capture, the tests above fail."""
    try:
        resumed, log = run(tmp_path, [7], 1, [6], mutation=mutation)
    except AssertionError:
        return  # The resumed run has failed.
    whole = expected(1)[0]
    if mutation == "the warning":
        assert "not in checkpoints" not in log
    else:
        assert resumed != whole


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_a_messy_run_is_killed_at_random_instants(seed: int, tmp_path: pathlib.Path) -> None:
    """Killed from outside eight times, at instants that nobody chose, a run with every kind of state ends the same."""
    chance = random.Random(seed)
    ranks = chance.choice([1, 1, 2])
    options = describe_run(tmp_path, [7], ranks, [])
    command = [sys.executable, "-m", "tests.checkpoint.messy_job", json.dumps(options)]
    for _ in range(8):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(chance.uniform(2.0, 9.0))
            child.kill()
    resumed = run(tmp_path, [7], ranks, [])[0]
    assert resumed == expected(ranks)[0]


@pytest.mark.timeout(600)
def test_what_cannot_be_saved_is_named_and_nothing_else() -> None:
    """What no checkpoint can hold is named in the log by its path, once; a warning that nobody needs is not given."""
    lines = [line.partition("not in checkpoints: ")[2] for line in expected(1)[1].splitlines()]
    paths = sorted(line.split(" ")[0] for line in lines if line)
    assert paths == sorted(f"{owner}.{path}" for owner in ("Messy", "Watcher", "Data") for path in NAMED.values())
