from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler, nsgaii
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from helios.checkpoint.archive import load_archive, save_archive
from helios.core import distributed
from helios.errors import ArgumentTypeError, CheckpointError, CorruptCheckpointError
from helios.plugins.optuna.samplers.checkpoint import checkpoint_sampler, restore_sampler
from helios.plugins.optuna.samplers.reproducible import ReproducibleSampler
from tests.plugins.optuna.sampler_parts import MAKERS, Killed, make_objective, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from optuna.samplers.nsgaii import BaseCrossover

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


def _make_genetic(crossover: type[BaseCrossover]) -> BaseSampler:
    mutation = nsgaii.PolynomialMutation()
    return NSGAIISampler(seed=1, population_size=4, crossover=crossover(), mutation=mutation)


_EXTRA_MAKERS: dict[str, Callable[[], BaseSampler]] = {
    "qmc-unseeded": lambda: QMCSampler(warn_independent_sampling=False),
    "cmaes-source": lambda: CmaEsSampler(
        seed=1,
        warn_independent_sampling=False,
        source_trials=[
            optuna.create_trial(
                value=float(i),
                params={"x": i / 20, "rate": 0.1, "n": 1 + i % 8},
                distributions={
                    "x": optuna.distributions.FloatDistribution(-1, 1),
                    "rate": optuna.distributions.FloatDistribution(1e-4, 1, log=True),
                    "n": optuna.distributions.IntDistribution(1, 8),
                },
            )
            for i in range(20)
        ],
    ),
    **{
        f"nsga2-{crossover.__name__}": functools.partial(_make_genetic, crossover)
        for crossover in (
            nsgaii.BLXAlphaCrossover,
            nsgaii.SPXCrossover,
            nsgaii.UNDXCrossover,
            nsgaii.VSBXCrossover,
        )
    },
}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _make(name: str) -> BaseSampler:
    return _EXTRA_MAKERS[name]() if name in _EXTRA_MAKERS else MAKERS[name](3)


def _study(sampler: BaseSampler, storage: InMemoryStorage | None = None) -> optuna.Study:
    return optuna.create_study(study_name="s", storage=storage or InMemoryStorage(), sampler=sampler)


def _checkpoint(sampler: BaseSampler, root: Path, times: int = 1) -> None:
    study = _study(sampler)
    for _ in range(times):
        checkpoint_sampler(study.ask(), root)


def _names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


class Bomb:
    """The code that must not run when a file is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("done", [0, 1, 9])
@pytest.mark.parametrize("name", [*MAKERS, *_EXTRA_MAKERS])
def test_restored_sampler_continues_exactly(name: str, done: int, tmp_path: Path) -> None:
    """Each of Optuna's samplers, saved in the middle of a study, draws the same values as the original."""
    more = 4 if name == "gp" else 14
    sampler = _make(name)
    study = _study(sampler)
    objective = make_objective(name, lambda _: None)

    study.optimize(objective, n_trials=done)
    trial = study.ask()
    checkpoint_sampler(trial, tmp_path)
    restored = restore_sampler(tmp_path)
    assert type(restored) is type(sampler)

    # The same study twice: one continues with the sampler, the other with the restored one.
    tables = []
    for continued in (sampler, restored):
        storage = pickle.loads(pickle.dumps(study._storage))
        storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        again = optuna.create_study(storage=storage, study_name="s", load_if_exists=True, sampler=continued)
        again.optimize(objective, n_trials=more)
        tables.append(table(again))
    assert tables[0] == tables[1]
    assert len(tables[0]) == done + more


def _run_killed(name: str, root: Path, trials: int, where: str) -> list[Any]:
    """Return the trials of a study that saves its sampler in each trial, and is killed in or after trial 7."""
    storage = InMemoryStorage()
    suggest = make_objective(name, lambda _: None)
    kills = iter([7])  # Trial 5 is pruned, and not saved.

    def die_at(place: str, trial: optuna.Trial) -> None:
        if place == where and trial.number == 7 and next(kills, None) is not None:
            raise Killed

    def objective(trial: optuna.Trial) -> float:
        die_at("before suggestions", trial)
        value = suggest(trial)
        checkpoint_sampler(trial, root)
        die_at("after saving", trial)
        return value

    def make_study() -> optuna.Study:
        sampler = restore_sampler(root) or _make(name)
        return optuna.create_study(study_name="s", storage=storage, load_if_exists=True, sampler=sampler)

    study = make_study()
    with contextlib.suppress(Killed):
        study.optimize(objective, n_trials=8)
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
    study = make_study()
    study.optimize(objective, n_trials=trials - len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))))
    return table(study)


@pytest.mark.parametrize("where", ["before suggestions", "after saving", "between trials"])
@pytest.mark.parametrize("name", list(MAKERS))
def test_saved_after_the_last_suggestion_no_number_is_drawn_twice(name: str, where: str, tmp_path: Path) -> None:
    """Killed before a trial's suggestions, or after its sampler was saved, a study is resumed exactly."""
    trials = 10 if name == "gp" else 16
    whole = _study(_make(name))
    whole.optimize(make_objective(name, lambda _: None), n_trials=trials)
    killed = _run_killed(name, tmp_path, trials, where)
    assert killed == table(whole)
    assert len(killed) == trials


def test_newest_three_are_kept(tmp_path: Path) -> None:
    """The folder is created, files are numbered consecutively, and the newest three are kept."""
    root = tmp_path / "not" / "there"
    study = _study(RandomSampler(seed=0))
    for _ in range(5):
        checkpoint_sampler(study.ask(), root)
    assert _names(root) == [f"sampler-00000{i}_trial-{i - 1}.pth" for i in (3, 4, 5)]

    # A retried trial has a lower number, but its sampler is the newest.
    other = _study(TPESampler(seed=0))
    checkpoint_sampler(other.ask(), root)
    assert _names(root)[-1] == "sampler-000006_trial-0.pth"
    assert isinstance(restore_sampler(root), TPESampler)


def test_nothing_to_restore(tmp_path: Path) -> None:
    """A missing folder, an empty one, and one with other files give `None`."""
    assert restore_sampler(tmp_path / "missing") is None
    assert restore_sampler(str(tmp_path)) is None
    for name in ("notes.txt", "sampler-1_trial-0.pth", "sampler-000001_trial-0.pth.bak", ".sampler-000001_trial-0.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    assert restore_sampler(tmp_path) is None
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("damage", ["empty", "zeros", "half", "first bytes", "without its end", "flipped"])
def test_truncated_file_is_skipped(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A truncated file is named in the log, and the file before it is used."""
    study = _study(RandomSampler(seed=0))
    for _ in range(2):
        checkpoint_sampler(study.ask(), tmp_path)
    newest = tmp_path / "sampler-000002_trial-1.pth"
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    truncated = {
        "empty": b"",
        "zeros": bytes(len(whole)),
        "half": whole[: len(whole) // 2],
        "first bytes": whole[:5],
        "without its end": whole[:-10],
        "flipped": bytes(flipped),
    }
    newest.write_bytes(truncated[damage])

    with caplog.at_level(logging.WARNING, "helios"):
        assert isinstance(restore_sampler(tmp_path), RandomSampler)
    assert f"skipped the sampler in {newest}, which is truncated" in caplog.text

    (tmp_path / "sampler-000001_trial-0.pth").unlink()
    assert restore_sampler(tmp_path) is None


def _write_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def _write_torch(path: Path, bomb: Bomb) -> None:
    torch.save(bomb, path)


def _write_sealed(path: Path, bomb: Bomb, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("helios.checkpoint.archive.encode", lambda _data, _path: {"sampler": bomb})
        save_archive(path, {})


def test_crafted_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that would run code is rejected, with and without a checksum, and no code runs."""
    bomb = Bomb(tmp_path / "boom")
    pickle.loads(pickle.dumps(bomb))
    assert bomb.folder.exists(), "the bomb is live"
    bomb.folder.rmdir()
    path = tmp_path / "sampler-000009_trial-0.pth"
    _checkpoint(RandomSampler(seed=0), tmp_path)

    for write in (_write_pickle, _write_torch):
        write(path, bomb)
        with pytest.raises(CorruptCheckpointError, match="is not a file that checkpoint_sampler wrote"):
            restore_sampler(tmp_path)
    _write_sealed(path, bomb, monkeypatch)
    with pytest.raises(CorruptCheckpointError, match="mkdir"):
        restore_sampler(tmp_path)
    assert not bomb.folder.exists()

    torch.load(path, weights_only=False)
    assert bomb.folder.exists(), "the sealed bomb is live, too"


class OwnSampler(RandomSampler):
    """A sampler of a user."""


def own_gamma(n: int) -> int:
    return min(n, 3)


def own_constraints(trial: optuna.trial.FrozenTrial) -> tuple[float]:
    return (trial.params["x"],)


def _with_generator() -> BaseSampler:
    sampler = RandomSampler(seed=0)
    sampler._rng._rng = np.random.RandomState(np.random.PCG64(1))
    return sampler


def _impostor() -> BaseSampler:
    kind = type("RandomSampler", (RandomSampler,), {"__module__": "optuna.samplers._random"})
    sampler: BaseSampler = kind(seed=0)
    return sampler


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OwnSampler(seed=0), "OwnSampler is a .*OwnSampler, which is not a part of Optuna's own samplers"),
        (lambda: TPESampler(gamma=own_gamma), "TPESampler._gamma is .*own_gamma, which"),
        (lambda: TPESampler(constraints_func=own_constraints), "TPESampler._constraints_func is .*own_constraints"),
        (lambda: TPESampler(gamma=lambda n: n), "TPESampler._gamma is .*<lambda>"),
        (lambda: CmaEsSampler(independent_sampler=OwnSampler()), "CmaEsSampler._independent_sampler is a .*OwnSampler"),
        (_with_generator, "RandomSampler._rng._rng draws from PCG64"),
        (_impostor, "RandomSampler is a optuna.samplers._random.RandomSampler, which is not a part"),
    ],
)
def test_what_cannot_be_restored_is_not_saved(make: Callable[[], BaseSampler], message: str, tmp_path: Path) -> None:
    """A sampler with a user's class or function is rejected when it is saved; the error names it and the remedy."""
    with pytest.raises(ArgumentTypeError, match=message):
        _checkpoint(make(), tmp_path / "samplers")
    assert not (tmp_path / "samplers").exists()


def test_message_has_the_remedy(tmp_path: Path) -> None:
    """The error for a user's own sampler names `ReproducibleSampler`."""
    with pytest.raises(ArgumentTypeError, match="wrap the sampler in ReproducibleSampler, which needs no checkpoint"):
        _checkpoint(OwnSampler(), tmp_path)


def test_reproducible_sampler_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that needs no checkpoint leaves no file."""
    with caplog.at_level(logging.DEBUG, "helios"):
        _checkpoint(ReproducibleSampler(TPESampler, 1), tmp_path / "samplers")

    assert "needs no checkpoint" in caplog.text
    assert not (tmp_path / "samplers").exists()
    assert restore_sampler(tmp_path / "samplers") is None


def test_only_rank_0_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On other ranks, whose remote trial has no study, nothing is saved."""
    monkeypatch.setattr("helios.plugins.optuna.samplers.checkpoint.get_global_rank", lambda: 1)
    checkpoint_sampler(object(), tmp_path)  # type: ignore[arg-type]  # as a remote trial

    assert _names(tmp_path) == []
    assert distributed.get_global_rank() == 0


def test_failed_write_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write keeps the existing files, and leaves no part of a new one."""
    _checkpoint(RandomSampler(seed=0), tmp_path, times=3)
    before = _names(tmp_path)

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="cannot be saved in .*disk full.*earlier ones are intact"):
        _checkpoint(RandomSampler(seed=0), tmp_path)
    assert _names(tmp_path) == before


def test_another_optuna_gives_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that another version of Optuna saved is restored, with a warning that names both."""
    _checkpoint(RandomSampler(seed=0), tmp_path)
    (path,) = tmp_path.iterdir()
    save_archive(path, load_archive(path) | {"optuna": "4.9.0"})

    assert isinstance(restore_sampler(tmp_path), RandomSampler)
    assert f"saved by Optuna 4.9.0; with Optuna {optuna.__version__} it may suggest other values" in caplog.text
