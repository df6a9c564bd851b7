from __future__ import annotations

import inspect
import logging
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from helios.core import distributed
from helios.core.archive import load_archive, save_archive
from helios.errors import ArgumentTypeError, CorruptCheckpointError
from helios.plugins.optuna import _sampler_state
from helios.plugins.optuna.reproducible import ReproducibleSampler
from helios.plugins.optuna.sampler import checkpoint_sampler, restore_sampler
from tests.plugins.optuna.samplers import MAKERS, make_objective, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

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
        f"nsga2-{crossover.__name__}": lambda crossover=crossover: NSGAIISampler(
            seed=1, population_size=4, crossover=crossover(), mutation=optuna.samplers.nsgaii.PolynomialMutation()
        )
        for crossover in (
            optuna.samplers.nsgaii.BLXAlphaCrossover,
            optuna.samplers.nsgaii.SPXCrossover,
            optuna.samplers.nsgaii.UNDXCrossover,
            optuna.samplers.nsgaii.VSBXCrossover,
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
    """What no file may do to those who read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("done", [0, 1, 9])
@pytest.mark.parametrize("name", [*MAKERS, *_EXTRA_MAKERS])
def test_restored_sampler_goes_on_exactly(name: str, done: int, tmp_path: Path) -> None:
    """SPEC D1: saved in the middle of a study, each of Optuna's samplers goes on as the one that was never saved."""
    more = 4 if name == "gp" else 14
    sampler = _make(name)
    study = _study(sampler)
    objective = make_objective(name, lambda _: None)

    study.optimize(objective, n_trials=done)
    trial = study.ask()
    checkpoint_sampler(trial, tmp_path)
    restored = restore_sampler(tmp_path)
    assert type(restored) is type(sampler)

    # The same study twice: one goes on with the sampler, one with the restored one.
    tables = []
    for going_on in (sampler, restored):
        storage = pickle.loads(pickle.dumps(study._storage))
        storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        again = optuna.create_study(storage=storage, study_name="s", load_if_exists=True, sampler=going_on)
        again.optimize(objective, n_trials=more)
        tables.append(table(again))
    assert tables[0] == tables[1]
    assert len(tables[0]) == done + more


def test_newest_three_are_kept(tmp_path: Path) -> None:
    """SPEC D1: the folder is made, files are numbered on, and the newest three stay."""
    root = tmp_path / "not" / "there"
    study = _study(RandomSampler(seed=0))
    for _ in range(5):
        checkpoint_sampler(study.ask(), root)
    assert _names(root) == [f"sampler-00000{i}_trial-{i - 1}.pth" for i in (3, 4, 5)]

    # A retried trial has a lower number, and yet its sampler is the newest.
    other = _study(TPESampler(seed=0))
    checkpoint_sampler(other.ask(), root)
    assert _names(root)[-1] == "sampler-000006_trial-0.pth"
    assert isinstance(restore_sampler(root), TPESampler)


def test_nothing_to_restore(tmp_path: Path) -> None:
    """SPEC D1: no folder, an empty one, and one with other files only give `None`."""
    assert restore_sampler(tmp_path / "missing") is None
    assert restore_sampler(str(tmp_path)) is None
    for name in ("notes.txt", "sampler-1_trial-0.pth", "sampler-000001_trial-0.pth.bak", ".sampler-000001_trial-0.pth"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    assert restore_sampler(tmp_path) is None
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("damage", ["empty", "zeros", "half", "first bytes", "without its end", "flipped"])
def test_torn_file_is_passed_over(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SPEC D1: a torn file is named in the log, and the one before it used."""
    study = _study(RandomSampler(seed=0))
    for _ in range(2):
        checkpoint_sampler(study.ask(), tmp_path)
    newest = tmp_path / "sampler-000002_trial-1.pth"
    whole = newest.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    torn = {
        "empty": b"",
        "zeros": bytes(len(whole)),
        "half": whole[: len(whole) // 2],
        "first bytes": whole[:5],
        "without its end": whole[:-10],
        "flipped": bytes(flipped),
    }
    newest.write_bytes(torn[damage])

    with caplog.at_level(logging.WARNING, "helios"):
        assert isinstance(restore_sampler(tmp_path), RandomSampler)
    assert f"passed over the sampler in {newest}, which is torn" in caplog.text

    (tmp_path / "sampler-000001_trial-0.pth").unlink()
    assert restore_sampler(tmp_path) is None


def _write_pickle(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


def _write_torch(path: Path, bomb: Bomb) -> None:
    torch.save(bomb, path)


def _write_sealed(path: Path, bomb: Bomb, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("helios.core.archive.encode", lambda _data, _path: {"sampler": bomb})
        save_archive(path, {})


def test_crafted_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC D1: a file that runs code where it is unpickled is refused, sealed or not, and nothing runs."""
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


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "posix:system",
        "builtins:eval",
        "optuna.samplers._tpe.sampler:os.system",
        "optuna.samplers._tpe.sampler:json",
        "optuna.samplers._tpe.sampler:TPESampler.sample_relative",
        "optuna.samplers._random:RandomSampler.__init__.__globals__",
        "torch.storage:_load_from_bytes",
        "optuna.storages:RDBStorage",
    ],
)
@pytest.mark.parametrize("kind", ["name", "object", "member", "record"])
def test_anything_else_is_refused_by_name(kind: str, name: str, tmp_path: Path) -> None:
    """SPEC D1: a sealed file that asks for anything that no sampler is made of, dotted names too, is refused by it."""
    node = {"kind": kind, "name": name, "class": name, "attributes": {}, "items": []}
    outer = {
        "kind": "object",
        "class": "optuna.samplers._random:RandomSampler",
        "attributes": {"_rng": node},
    }
    save_archive(tmp_path / "sampler-000001_trial-0.pth", {"sampler": outer})

    with pytest.raises(CorruptCheckpointError, match=f"asks for '{name}', which no sampler of Optuna is made of"):
        restore_sampler(tmp_path)


_RANDOM = "optuna.samplers._random:RandomSampler"
_WORDS = np.zeros(624, np.uint32)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (None, "the data are those of a NoneType, not of a sampler"),
        ({"kind": "list", "items": []}, "the data are those of a list, not of a sampler"),
        ({"kind": "name", "name": _RANDOM}, "the data are those of a ABCMeta, not of a sampler"),
        ({"kind": "object", "class": "optuna.trial._state:TrialState", "attributes": {}}, "malformed"),
        ({"kind": "object", "class": _RANDOM, "attributes": {"__class__": 1}}, "'__class__' in the place of"),
        ({"kind": "object", "class": _RANDOM, "attributes": {"sample_relative": 1}}, "'sample_relative' in the place"),
        ({"kind": "member", "class": _RANDOM, "name": "x"}, "for a Enum"),
        ({"kind": "record", "class": _RANDOM, "items": []}, "for a tuple"),
        ({"kind": "same", "as": 0}, "malformed: IndexError"),
        ({"kind": "unheard of"}, "malformed: KeyError"),
        ({"kind": "dict", "keys": [1], "values": []}, "malformed: ValueError"),
        ({"kind": "generator", "words": _WORDS, "position": 625, "has_gauss": 0, "gauss": 0.0}, "stands at 625"),
        ({"kind": "generator", "words": _WORDS, "position": -1, "has_gauss": 0, "gauss": 0.0}, "stands at -1"),
        ({"kind": "generator", "words": _WORDS[:9], "position": 0, "has_gauss": 0, "gauss": 0.0}, "has (9,) words"),
        ("text", "the data are those of a str"),
        (7.5, "the data are those of a float"),
        (["a"], "malformed: TypeError"),
        ({"kind": "record", "class": "optuna.samplers._tpe.parzen_estimator:_ParzenEstimatorParameters", "items": []}, "0 fields"),
    ],
)  # fmt: skip
def test_malformed_data_are_refused(node: Any, message: str, tmp_path: Path) -> None:
    """SPEC D1: data that `checkpoint_sampler` never writes are refused, with the reason."""
    save_archive(tmp_path / "sampler-000001_trial-0.pth", {"sampler": node})

    with pytest.raises(CorruptCheckpointError) as caught:
        restore_sampler(tmp_path)
    assert message in str(caught.value)


def test_nested_too_deeply() -> None:
    """SPEC D1: data nested a hundred thousand times are refused, and do not end the process."""
    node: Any = None
    for _ in range(100_000):
        node = {"kind": "list", "items": [node]}

    with pytest.raises(CorruptCheckpointError, match="RecursionError"):
        _sampler_state.decode_sampler(node)


def test_admitted_names_are_optunas_own() -> None:
    """Every admitted name is a class or a plain function of Optuna, defined in the module that it is asked from."""
    for admitted in (_sampler_state._CLASSES, _sampler_state._FUNCTIONS):
        for name in admitted:
            module, _, attribute = name.partition(":")
            assert module.startswith("optuna.")
            assert attribute.isidentifier()
            value = _sampler_state._resolve(name, admitted)
            assert _sampler_state._name_of(value) == name
            assert inspect.isclass(value) == (admitted is _sampler_state._CLASSES)


class OwnSampler(RandomSampler):
    """A user's own."""


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
    """SPEC D1: a sampler with a part of the user's own is refused when it is saved, by that part, with the remedy."""
    with pytest.raises(ArgumentTypeError, match=message):
        _checkpoint(make(), tmp_path / "samplers")
    assert not (tmp_path / "samplers").exists()


def test_message_has_the_remedy(tmp_path: Path) -> None:
    """The refusal of a user's own sampler names `ReproducibleSampler`."""
    with pytest.raises(ArgumentTypeError, match="wrap the sampler in ReproducibleSampler, which needs no checkpoint"):
        _checkpoint(OwnSampler(), tmp_path)


def test_reproducible_sampler_is_not_saved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SPEC D5: a sampler that needs no checkpoint leaves no file."""
    with caplog.at_level(logging.DEBUG, "helios"):
        _checkpoint(ReproducibleSampler(TPESampler, 1), tmp_path / "samplers")

    assert "needs no checkpoint" in caplog.text
    assert not (tmp_path / "samplers").exists()
    assert restore_sampler(tmp_path / "samplers") is None


def test_only_rank_0_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC C8: in the other ranks, whose trial is a stand-in without a study, nothing happens."""
    monkeypatch.setattr("helios.plugins.optuna.sampler.get_global_rank", lambda: 1)
    checkpoint_sampler(object(), tmp_path)  # type: ignore[arg-type]  # a stand-in

    assert _names(tmp_path) == []
    assert distributed.get_global_rank() == 0


def test_failed_write_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC D1: a write that fails leaves the files that were there, and no part of a new one."""
    _checkpoint(RandomSampler(seed=0), tmp_path, times=3)
    before = _names(tmp_path)

    def fail(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        _checkpoint(RandomSampler(seed=0), tmp_path)
    assert _names(tmp_path) == before


def test_other_optuna_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler that another version of Optuna saved is restored, with a warning that names both."""
    _checkpoint(RandomSampler(seed=0), tmp_path)
    (path,) = tmp_path.iterdir()
    save_archive(path, load_archive(path) | {"optuna": "4.9.0"})

    assert isinstance(restore_sampler(tmp_path), RandomSampler)
    assert f"saved by Optuna 4.9.0; that of {optuna.__version__} may go on differently" in caplog.text


def test_shared_parts_stay_shared() -> None:
    """A genetic sampler and its strategies draw from one generator, and do so after they were restored."""
    sampler: Any = _sampler_state.decode_sampler(_sampler_state.encode_sampler(NSGAIISampler(seed=0)))

    assert sampler._child_generation_strategy._rng is sampler._rng
    assert sampler._random_sampler._rng is not sampler._rng
