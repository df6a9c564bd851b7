"""Where a run gets its processes from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.errors import ConfigurationError, NotRunningError
from helios.ranks.results import ResultQueue
from helios.trainer import _trainer
from helios.trainer._options import TrainerOptions
from helios.trainer.launch.launcher import Inline, select_launcher
from helios.trainer.launch.rank import RankLauncher
from helios.trainer.launch.spawn import Spawn
from helios.trainer.launch.torchrun import Torchrun
from tests.ranks.ranks import run_ranks
from tests.trainer.parts import CountingModel, ListData, make_trainer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def torchrun_of(world_size: int) -> dict[str, str]:
    """Return the variables that torchrun sets."""
    return dict(zip(NAMES, ("0", "0", str(world_size), str(world_size), "localhost", "29500"), strict=True))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this machine have four GPUs, as far as options are concerned."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("environment", "arguments", "launcher"),
    [
        ({}, {}, Spawn),  # All GPUs.
        ({}, {"use_cpu": True}, Inline),
        ({}, {"gpus": [3]}, Inline),
        ({}, {"num_processes": 1}, Inline),
        ({}, {"gpus": [0, 2]}, Spawn),
        ({}, {"num_processes": 2}, Spawn),
        ({}, {"num_processes": 7}, Spawn),
        (torchrun_of(1), {}, Inline),
        (torchrun_of(1), {"num_processes": 1}, Inline),
        (torchrun_of(1), {"gpus": [0, 1]}, Inline),
        (torchrun_of(2), {}, Torchrun),
        (torchrun_of(2), {"num_processes": 2}, Torchrun),
        (torchrun_of(2), {"use_cpu": True}, Torchrun),
        (torchrun_of(2), {"gpus": [1, 2]}, Torchrun),
        (torchrun_of(8), {"gpus": [0]}, Torchrun),
    ],
)
def test_environment_and_arguments_choose_the_launcher(
    environment: Mapping[str, str], arguments: dict[str, Any], launcher: type
) -> None:
    """The variables of torchrun have priority over the number of processes or GPUs; one process is not launched."""
    chosen = select_launcher(environment, TrainerOptions(**arguments))
    assert type(chosen) is launcher
    assert (chosen.queue is None) == (launcher is Inline)


@pytest.mark.parametrize("name", NAMES)
def test_torchrun_needs_all_of_its_variables(name: str) -> None:
    """If only some of torchrun's variables are set, as by a cluster, the arguments decide."""
    environment = {key: value for key, value in torchrun_of(4).items() if key != name}
    assert type(select_launcher(environment, TrainerOptions(num_processes=2))) is Spawn
    assert type(select_launcher(environment, TrainerOptions(use_cpu=True))) is Inline


@pytest.mark.parametrize(("asked", "started"), [(1, 2), (2, 1), (3, 2), (2, 8)])
def test_a_contradiction_to_torchrun_is_refused(asked: int, started: int) -> None:
    """`num_processes` that contradicts torchrun is an error that says what decides."""
    with pytest.raises(ConfigurationError, match=f"num_processes={asked}, but torchrun has started {started} "):
        select_launcher(torchrun_of(started), TrainerOptions(num_processes=asked))


def test_a_trainer_reads_the_environment_in_its_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A contradiction to the environment is refused by the constructor, which also creates the queue."""
    monkeypatch.setattr(_trainer, "read_environment", lambda: torchrun_of(2))
    with pytest.raises(ConfigurationError, match="--nproc-per-node decides"):
        make_trainer(num_processes=3)
    assert isinstance(make_trainer().queue, ResultQueue)
    monkeypatch.setattr(_trainer, "read_environment", dict)
    assert make_trainer().queue is None
    trainer = make_trainer(num_processes=2)
    assert isinstance(trainer.queue, ResultQueue)
    assert trainer.queue is trainer.queue


def test_the_calling_process_trains_where_one_is_enough() -> None:
    """With `num_processes=1` nothing is started: the model that was passed is the one that is trained."""
    model, trainer = CountingModel(), make_trainer(num_processes=1)
    assert trainer.fit(model, ListData())
    assert len(model.seen) == 6
    assert trainer.queue is None


def train_in_a_group(rank: int) -> list[str]:
    """Call `fit` in a process group that the environment says nothing of; return what is said to that."""
    del rank
    told = []
    for options in ({"use_cpu": True}, {"num_processes": 2}):
        with pytest.raises(ConfigurationError) as caught:
            make_trainer(**options).fit(CountingModel(), ListData())
        told.append(str(caught.value))
    return told


def test_an_unknown_process_group_is_refused(tmp_path: Path) -> None:
    """In a process group that torchrun's variables do not describe, `fit` raises instead of training separately."""
    text = "a process group of 2 processes is active, and without RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, MAS"
    for told in run_ranks(tmp_path, 2, train_in_a_group):
        assert [line.startswith(text) for line in told] == [True, True]


def test_a_rank_launches_nothing() -> None:
    """The trainer in a rank refuses to start another run, and the error says what to do."""
    trainer = copy.copy(make_trainer(num_processes=2))  # Copied as it is when it is sent to a rank.
    assert isinstance(trainer._launcher, RankLauncher)
    assert trainer.queue is None, "outside of a rank there is no line home"
    for method, phase in (("fit", "training"), ("test", "testing")):
        with pytest.raises(NotRunningError, match=f"a rank cannot start another run .{phase}.: call"):
            getattr(trainer, method)(CountingModel(), ListData())
