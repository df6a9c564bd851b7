from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from optuna.samplers import NSGAIISampler

from helios.checkpoint.archive import save_archive
from helios.errors import CorruptCheckpointError
from helios.plugins.optuna.samplers import encoding as _encoding
from helios.plugins.optuna.samplers.checkpoint import restore_sampler

if TYPE_CHECKING:
    from pathlib import Path


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
    """A file with a valid checksum that names anything but the parts of samplers is rejected, and the name is shown."""
    node = {"kind": kind, "name": name, "class": name, "attributes": {}, "items": []}
    outer = {
        "kind": "object",
        "class": "optuna.samplers._random:RandomSampler",
        "attributes": {"_rng": node},
    }
    save_archive(tmp_path / "sampler-000001_trial-0.pth", {"sampler": outer})

    with pytest.raises(CorruptCheckpointError, match=f"names '{name}', which is not part of Optuna's samplers"):
        restore_sampler(tmp_path)


_RANDOM = "optuna.samplers._random:RandomSampler"
_RECORD = "optuna.samplers._tpe.parzen_estimator:_ParzenEstimatorParameters"
_WORDS = np.zeros(624, np.uint32)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (None, "the data are those of a NoneType, not of a sampler"),
        ({"kind": "list", "items": []}, "the data are those of a list, not of a sampler"),
        ({"kind": "name", "name": _RANDOM}, "the data are those of a ABCMeta, not of a sampler"),
        ({"kind": "object", "class": "optuna.trial._state:TrialState", "attributes": {}}, "malformed"),
        ({"kind": "object", "class": _RANDOM, "attributes": {"__class__": 1}}, "'__class__', which is an attribute"),
        ({"kind": "object", "class": _RANDOM, "attributes": {"sample_relative": 1}}, "'sample_relative', which"),
        ({"kind": "member", "class": _RANDOM, "name": "x"}, "is not a Enum"),
        ({"kind": "record", "class": _RANDOM, "items": []}, "is not a tuple"),
        ({"kind": "same", "as": 0}, "malformed: IndexError"),
        ({"kind": "unheard of"}, "malformed: KeyError"),
        ({"kind": "dict", "keys": [1], "values": []}, "malformed: ValueError"),
        ({"kind": "generator", "words": _WORDS, "position": 625, "has_gauss": 0, "gauss": 0.0}, "the position 625"),
        ({"kind": "generator", "words": _WORDS, "position": -1, "has_gauss": 0, "gauss": 0.0}, "the position -1"),
        ({"kind": "generator", "words": _WORDS[:9], "position": 0, "has_gauss": 0, "gauss": 0.0}, "has (9,) words"),
        ("text", "the data are those of a str"),
        (7.5, "the data are those of a float"),
        (["a"], "malformed: TypeError"),
        ({"kind": "record", "class": _RECORD, "items": []}, "malformed"),
    ],
)  # fmt: skip
def test_malformed_data_are_refused(node: Any, message: str, tmp_path: Path) -> None:
    """Data that `checkpoint_sampler` never writes are rejected with the reason."""
    save_archive(tmp_path / "sampler-000001_trial-0.pth", {"sampler": node})

    with pytest.raises(CorruptCheckpointError) as caught:
        restore_sampler(tmp_path)
    assert message in str(caught.value)


def test_nested_too_deeply() -> None:
    """Data with 100,000 levels are rejected, and do not crash the process."""
    node: Any = None
    for _ in range(100_000):
        node = {"kind": "list", "items": [node]}

    with pytest.raises(CorruptCheckpointError, match="RecursionError"):
        _encoding.decode_sampler(node)


def test_admitted_names_are_optunas_own() -> None:
    """Every allowed name is a class or a function of Optuna, defined in the module that the name contains."""
    for admitted in (_encoding._CLASSES, _encoding._FUNCTIONS):
        for name in admitted:
            module, _, attribute = name.partition(":")
            assert module.startswith("optuna.")
            assert attribute.isidentifier()
            value = _encoding._resolve(name, admitted)
            assert _encoding._name_of(value) == name
            assert inspect.isclass(value) == (admitted is _encoding._CLASSES)


def test_shared_parts_stay_shared() -> None:
    """A genetic sampler and its strategies share one random generator, also after they were restored."""
    sampler: Any = _encoding.decode_sampler(_encoding.encode_sampler(NSGAIISampler(seed=0)))

    assert sampler._child_generation_strategy._rng is sampler._rng
    assert sampler._random_sampler._rng is not sampler._rng
