"""Whoever reaches the store of a run can end it, but runs no code in it."""

from __future__ import annotations

import os
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helios import Trainer
from helios.errors import RankFailedError
from helios.plugins.optuna import distributed
from helios.ranks.announcements import FAILED
from helios.ranks.monitor import STOP, position_key
from tests.distributed import torchrun
from tests.distributed.parts import wait_for
from tests.faults.sockets import listening
from tests.faults.strangers import connect, craft, find_prefix, overwrite
from tests.trainer.parts import CountingModel, ListData

if TYPE_CHECKING:
    from helios import TrainingState

# What ranks read beside the keys that there are at any moment; `place` and `leave` make them leave.
LATER = [FAILED, position_key(0), position_key(1), STOP]
LATER += [*map(distributed._message_key, range(5)), *(distributed._result_key(1, number) for number in range(20))]
REFUSED = "which no rank of this run writes: find out who else reaches its port"


@pytest.fixture
def harm(tmp_path: Path) -> Path:
    """Return the folder that harm makes, after a look at whether it would."""
    pickle.loads(craft(tmp_path / "trial"))
    assert (tmp_path / "trial").is_dir()
    return tmp_path / "harm"


class Training(CountingModel):
    """Trains until a stranger has come by, and then until it is stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__("training")
        self.folder = folder

    def train_step(self, batch: Any, state: TrainingState) -> None:
        super().train_step(batch, state)
        (self.folder / f"rank-{self.rank}").touch()
        wait_for(self.folder / "visited")


@pytest.mark.usefixtures("forked_ranks")
def test_a_run_that_fit_has_started(tmp_path: Path, harm: Path) -> None:
    """Pickles under every key of a run's store are not loaded, and the run ends with an error about them."""
    before = listening([os.getpid()])
    seen: set[str] = set()

    def visit() -> None:
        for rank in range(2):
            wait_for(tmp_path / f"rank-{rank}")
        ((_, port),) = listening([os.getpid()]) - before
        seen.update(overwrite(connect(port), craft(harm), LATER))
        (tmp_path / "visited").touch()

    stranger = threading.Thread(target=visit)
    stranger.start()
    with pytest.raises(RankFailedError, match=REFUSED):
        Trainer(total_steps=10**6, num_processes=2, print_banner=False).fit(Training(tmp_path), ListData())
    stranger.join()
    assert len(seen) >= 2, "torch's own keys"
    assert not harm.exists()


def port_of(job: torchrun.Job) -> int:
    """Return the port of the store that torchrun has for its ranks."""
    environment = Path(f"/proc/{job.rank_pids()[0]}/environ").read_bytes().split(b"\0")
    (port,) = (entry.partition(b"=")[2] for entry in environment if entry.startswith(b"MASTER_PORT="))
    return int(port)


def test_a_run_under_torchrun(tmp_path: Path, harm: Path) -> None:
    """The same under torchrun, with the store through which ranks announce failures."""
    arguments = ["train", str(tmp_path), "1", "60"]
    with torchrun.start("trouble_job", arguments, folder=tmp_path) as job:
        wait_for(tmp_path / "waiting")
        store = connect(port_of(job))
        prefix = find_prefix(store)
        # A rank that finds "leave" looks for no failure any more; tests/ranks/test_monitor.py has a stranger write it.
        seen = overwrite(store, craft(harm), [key for key in LATER if key != STOP], prefix=prefix)
        assert job.wait(60) != 0
    assert f"{prefix}beat/0" in seen
    assert REFUSED in job.output()
    assert "under 'failed'" in job.output()
    assert not harm.exists()


@pytest.mark.parametrize("what", ["result", "trial"])
def test_a_study_under_torchrun(tmp_path: Path, harm: Path, what: str) -> None:
    """No rank unpickles requests about trials, their results, or the next trial."""
    with torchrun.start("visited_study_job", [str(tmp_path)], folder=tmp_path) as job:
        wait_for(tmp_path / "waiting")
        store, keys = connect(port_of(job)), [key for key in LATER if key.startswith(what)]
        overwrite(store, craft(harm), keys, [distributed._REQUESTS], find_prefix(store))
        (tmp_path / "visited").touch()
        assert job.wait(60) != 0
    assert REFUSED in job.output()
    assert f"under '{what}/" in job.output()
    assert "a request of another rank was ignored: the store of the run holds" in job.output()
    assert not harm.exists()
