from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.checkpoint.passport import DriftPolicy, check_passport, find_drift, merge_ranks, to_entries, to_plain
from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

LOG = logging.getLogger("helios")
PATH = Path("m_epoch_1_iter_1.pth")

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def check(saved: Any, current: Mapping[str, Any], on_drift: Any = "refuse") -> None:
    check_passport(PATH, saved, current, DriftPolicy(on_drift, {}), LOG)


@given(st.dictionaries(st.text(), PLAIN))
def test_a_passport_has_no_drift_from_itself(entries: dict[str, Any]) -> None:
    """Plain values survive being made plain, and are equal to themselves: NaN, dictionaries in another order, too."""
    plain = to_entries("trainer.", entries, "passport")
    assert find_drift(plain, dict(reversed(plain.items()))) == []
    assert merge_ranks([plain, plain]) == plain or "NaN" in str(plain) or "nan" in str(plain)


def test_entries_are_made_plain() -> None:
    """Tuples become lists, and what derives from a plain type that type; what is not plain is refused by its name."""
    value = to_plain("a", (np.float64(0.5), {"b": (1, None)}))
    assert value == [0.5, {"b": [1, None]}]
    assert type(value[0]) is float
    circle: list[Any] = []
    circle.append(circle)
    for bad in (object(), {1, 2}, circle, np.int64(3)):
        with pytest.raises(ArgumentTypeError, match=r"the passport entry 'model.x' is .*: give a number, a string"):
            to_entries("model.", {"x": bad}, "Net.passport()")
    for bad in (["x"], {1: 2}, None):
        with pytest.raises(ArgumentTypeError, match=r"Net.passport\(\) is .*: give a dictionary of names"):
            to_entries("model.", bad, "Net.passport()")


def test_what_makes_another_run_is_refused_with_values_and_remedy() -> None:
    """Every entry that makes another run is named with both values, and with what accepts it."""
    saved = {"seed": 1, "torch": "2.12", "train.length": 100, "model.width": 8}
    with pytest.raises(CheckpointMismatchError) as refused:
        check(saved, {"seed": 2, "torch": "2.13", "train.length": 90, "model.width": 9})
    said = str(refused.value)
    assert said.startswith(f"{PATH} belongs to another run than this one: ")
    assert "seed was 1 and is 2; train.length was 100 and is 90; model.width was 8 and is 9" in said
    assert "Trainer(on_drift={'seed': 'warn', 'train.length': 'warn', 'model.width': 'warn'})" in said
    assert "torch" not in said


def test_what_ends_bit_equality_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Versions, threads and the like are one warning together, with both values of each."""
    check({"torch": "2.12", "threads": 1, "numpy": "2"}, {"torch": "2.13", "threads": 2, "numpy": "2"})
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("torch was '2.12' and is '2.13'; threads was 1 and is 2")


def test_entries_of_one_side_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """What only one of two versions knows is named and not compared, and no passport at all is a line in the log."""
    caplog.set_level("INFO")
    check({"seed": 1, "old": object()}, {"seed": 1, "new": 3})
    assert caplog.messages == [
        f"not compared when {PATH} was resumed: old (only in the checkpoint), new (only in this run)"
    ]
    no_passports: tuple[Any, ...] = (None, [], 3)
    for saved in no_passports:
        caplog.clear()
        check(saved, {"seed": 1})
        assert "has no passport" in caplog.text
    caplog.clear()
    check({"seed": 1, "old": object()}, {"seed": 1, "new": 3}, "ignore")
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("on_drift", "refused", "warned"),
    [
        ("refuse", ["seed"], []),
        ("strict", ["seed", "threads"], []),
        ("warn", [], ["seed", "threads"]),
        ("ignore", [], []),
        ({"seed": "warn"}, [], ["seed", "threads"]),
        ({"seed": "ignore"}, [], ["threads"]),
        ({"threads": "refuse"}, ["seed", "threads"], []),
        ({"seed": "warn", "threads": "ignore"}, [], ["seed"]),
    ],
    ids=str,
)
def test_the_verdict_can_be_changed(
    caplog: pytest.LogCaptureFixture, on_drift: Any, refused: list[str], warned: list[str]
) -> None:
    """`on_drift` decides for all entries, or for those it names."""
    saved, current = {"seed": 1, "threads": 1}, {"seed": 2, "threads": 2}
    if refused:
        with pytest.raises(CheckpointMismatchError) as error:
            check(saved, current, on_drift)
        assert [name for name in saved if f"{name} was" in str(error.value)] == refused
        assert not caplog.records
    else:
        check(saved, current, on_drift)
        assert [name for name in saved if f"{name} was" in caplog.text] == warned
        assert len(caplog.records) == bool(warned)


def test_a_verdict_that_makes_no_sense_is_refused() -> None:
    """Unknown verdicts and names are refused, the names with those there are; so is another type."""
    for bad, message in (
        ("warning", "on_drift is 'warning': choose one of 'refuse', 'strict', 'warn', 'ignore'"),
        ({"sed": "warn"}, "on_drift has 'sed', which is no entry of the passport: there are seed, train_unit"),
        ({"trainer.other": "warn"}, "no entry of the passport: .*, trainer.data, and those that begin with 'model.'"),
        ({"seed": "strict"}, r"on_drift\['seed'\] is 'strict': choose one of 'refuse', 'warn', 'ignore'"),
        ({"seed": ["warn"]}, "choose one of"),
        ({3: "warn"}, "on_drift has 3"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            DriftPolicy(bad, {"trainer.data": 1})
    for other in (None, 3, ["warn"]):
        with pytest.raises(ArgumentTypeError, match="on_drift is .*: pass 'refuse', 'strict'"):
            DriftPolicy(other, {})
    DriftPolicy({"trainer.data": "warn", "model.x": "ignore", "plugins.p.x": "warn"}, {"trainer.data": 1})


def batches(size: int, ranks: int) -> dict[str, Any]:
    return {"train.batch_size": size, "train.global_batch_size": size * ranks, "ranks": ranks}


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((8, 2), (8, 2), {}),
        ((8, 2), (4, 4), {"ranks": False}),
        ((8, 2), (8, 4), {"ranks": False, "train.global_batch_size": False}),
        ((8, 2), (6, 2), {"train.batch_size": True}),
        ((8, 2), (6, 4), {"ranks": False, "train.batch_size": True}),
    ],
)
def test_batches_are_compared_over_all_ranks(
    before: tuple[int, int], now: tuple[int, int], expected: dict[str, bool]
) -> None:
    """Other ranks with the same global batches, or the same batches each, are no other run; another size is."""
    drifts = find_drift(batches(*before), batches(*now))
    assert {drift.name: drift.is_other_run for drift in drifts} == expected


def test_what_does_not_apply_is_not_compared() -> None:
    """A validation that is switched on or off, or a strategy without ranks, is no drift; a dataset's length is one."""
    off = {"valid.length": None, "valid.batch_size": None, "strategy": None, "cudnn": None}
    on = {"valid.length": 5, "valid.batch_size": 2, "strategy": "ddp", "cudnn": {"benchmark": False}}
    assert find_drift(off, on) == find_drift(on, off) == []
    assert [drift.name for drift in find_drift(on, {**on, "valid.length": 6})] == ["valid.length"]
    assert [drift.name for drift in find_drift({"train.length": 5}, {"train.length": None})] == ["train.length"]


def test_ranks_that_differ_are_listed() -> None:
    """What all ranks have in common is one value, however many there are; what differs is a list by rank."""
    ranks = [{"a": 1, "threads": 2, "x": math.nan}, {"a": 1, "threads": 3, "x": math.nan, "y": 0}]
    merged = merge_ranks(ranks)
    assert (merged["a"], merged["threads"], merged["y"]) == (1, [2, 3], [None, 0])
    assert find_drift(merged, merge_ranks([*ranks])) == []
    assert merge_ranks([ranks[0]]) == merge_ranks([ranks[0]] * 3) == ranks[0]
