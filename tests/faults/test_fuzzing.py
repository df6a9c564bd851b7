"""Arguments of all kinds for every public constructor and function: an error of ours, or success."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helios.errors import HeliosError
from tests.faults.calls import CALLS, Call

if TYPE_CHECKING:
    from collections.abc import Iterator

TEXT = st.text(max_size=8) | st.sampled_from(
    ["", "cpu", "cuda", "a\0b", "\ud800", "~nosuchuser/x", "../..", "sqlite://", "sqlite:///a/b.db", "x" * 300, "1e999"]
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3) | st.integers(),
    st.sampled_from([0.5, 1e300, float("nan"), float("inf"), -float("inf"), 2**63, 1j]),
    TEXT,
    st.binary(max_size=4),
    st.sampled_from(
        [object(), int, len, Path("a/b"), torch.ones(2), torch.device("cpu"), optuna.trial.TrialState.FAIL]
    ),
)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 2) | st.sampled_from(["kind", "low"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be printed, and warnings be warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def try_out(call: Call, data: st.DataObject) -> None:
    """Exchange some of the right arguments, and call."""
    names = data.draw(st.lists(st.sampled_from(sorted(call.arguments)), min_size=1, max_size=3, unique=True))
    arguments = {**call.arguments, **{name: data.draw(ANYTHING, label=name) for name in names}}
    with quiet(), contextlib.suppress(HeliosError):
        call.function(**arguments)


def attempt(name: str, examples: int) -> None:
    @settings(max_examples=examples, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(st.data())
    def run(data: st.DataObject) -> None:
        try_out(CALLS[name], data)

    run()


@pytest.mark.parametrize("name", CALLS)
def test_arguments_get_an_error_of_ours_or_success(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is passed where something else belongs never ends in an error of Python's own, nor in a wait."""
    monkeypatch.chdir(tmp_path)
    attempt(name, 20)


@pytest.mark.soak
@pytest.mark.parametrize("name", CALLS)
def test_many_arguments_get_an_error_of_ours_or_success(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the test above, with more arguments."""
    monkeypatch.chdir(tmp_path)
    attempt(name, 1000)
