"""Arguments that are easily mistaken: one clear error each, with what to pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from helios import Trainer
from helios.core import ChdirContext, safe_torch_load
from helios.core.rng import get_rng_state_dict, load_rng_state_dict
from helios.errors import ArgumentTypeError, ConfigurationError, FileAccessError, HeliosError, MissingFileError
from helios.plugins import PLUGIN_REGISTRY, DevicePlugin
from helios.plugins.optuna import SearchSpace, checkpoint_sampler, resume_study, run_study
from helios.testing import are_equal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STUDY_ARGS = {"study_name": "s", "storage": "sqlite:///study.db", "load_if_exists": True}


def resume(**arguments: Any) -> optuna.Study:
    return resume_study({**STUDY_ARGS, **arguments})


def run(make_study: Any = optuna.create_study, objective: Any = len) -> optuna.Study:
    return run_study(make_study, objective, 1)


MISTAKES: list[tuple[Callable[[], object], type[HeliosError], str]] = [
    (lambda: resume_study(None), ArgumentTypeError, "study_args is None, .*: pass a dict"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: resume(nmae="s"), ConfigurationError, r"study_args has \['nmae'\], which .* does not take: there are"),
    (lambda: resume(study_name=""), ConfigurationError, "study_name is '': pass a name of 1 to 512 characters"),
    (lambda: resume(study_name="a\0b"), ConfigurationError, "pass a name of 1 to 512 characters, without NUL"),
    (lambda: resume(study_name="x" * 513), ConfigurationError, "xxx.: pass a name of 1 to 512 characters"),
    (lambda: resume(study_name=3), ArgumentTypeError, "study_name is 3, a int: pass a string"),
    (lambda: resume(sampler="tpe"), ArgumentTypeError, "sampler is 'tpe', a str: pass an Optuna sampler, or None"),
    (lambda: resume(direction="up"), ConfigurationError, "optuna.create_study rejects study_args .*up.*: correct them"),
    (
        lambda: resume_study(STUDY_ARGS, backup_study="no"),  # type: ignore[arg-type]  # wrong on purpose
        ArgumentTypeError,
        "backup_study is 'no', a str: pass True or False",
    ),
    (lambda: resume_study(STUDY_ARGS, "FAIL"), ArgumentTypeError, "failed_states is 'FAIL': pass states, such as"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: run(make_study=None), ArgumentTypeError, "make_study is None, .*: pass a function that returns the study"),
    (lambda: run(make_study=lambda: None), ArgumentTypeError, "make_study returned None, a NoneType: return the study"),
    (lambda: run(objective=3), ArgumentTypeError, "objective is 3, a int: pass a function of a trial"),
    (lambda: safe_torch_load("missing.pth"), MissingFileError, "correct the path: .*missing.pth"),
    (lambda: safe_torch_load(3), ArgumentTypeError, "f is 3, a int: pass a path"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: safe_torch_load("a", map_location="gpu"), ConfigurationError, "map_location is 'gpu'"),
    (lambda: ChdirContext("missing").__enter__(), MissingFileError, "correct the path: 'missing'"),
    (lambda: SearchSpace.from_toml("missing.toml"), MissingFileError, "correct the path: .*missing.toml"),
    (lambda: SearchSpace.from_toml("."), FileAccessError, "it is a folder, and not a file"),
    (lambda: DevicePlugin("gpu:0"), ConfigurationError, "device is 'gpu:0'"),
    (lambda: PLUGIN_REGISTRY.get(["a"]), ArgumentTypeError, r"the name is \['a'\], a list: pass a string"),  # type: ignore[arg-type]  # wrong on purpose
    (lambda: Trainer().plugins[["a"]], HeliosError, r"no plug-in \['a'\]"),  # type: ignore[call-overload]  # wrong on purpose
    (
        lambda: checkpoint_sampler(optuna.trial.FixedTrial({}), "a"),  # type: ignore[arg-type]  # wrong on purpose
        ArgumentTypeError,
        "trial is .*FixedTrial.*: pass the running trial of a study",
    ),
]


@pytest.mark.parametrize(("attempt", "kind", "message"), MISTAKES, ids=[message for *_, message in MISTAKES])
def test_a_mistake_gets_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[], object], kind: type, message: str
) -> None:
    """Each mistake is named with its value and with what to pass."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        attempt()


def test_one_state_is_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`failed_states=TrialState.FAIL` means what a tuple of it means."""
    monkeypatch.chdir(tmp_path)
    study = resume()
    study.tell(study.ask(), state=TrialState.FAIL)
    assert [trial.state for trial in resume_study(STUDY_ARGS, TrialState.FAIL).trials] == [TrialState.WAITING]


@pytest.mark.parametrize("nested", ["x = " + "[" * 100_000, "x = " + "{a = " * 100_000, "a." * 100_000 + "b = 1"])
def test_toml_that_is_nested_deeply_is_refused(tmp_path: Path, nested: str) -> None:
    """A file of tables or lists 100,000 deep is one error of ours, in place of a RecursionError."""
    (tmp_path / "space.toml").write_text(nested)
    with pytest.raises(ConfigurationError, match="space.toml: "):
        SearchSpace.from_toml(tmp_path / "space.toml")


@pytest.mark.parametrize("part", ["python", "numpy", "generator", "torch"])
def test_generators_stay_where_they_are_when_their_state_is_wrong(part: str) -> None:
    """A state that is wrong in one part changes no generator, and is refused; positions beyond the end are, too."""
    state = get_rng_state_dict()
    torch.rand(1)
    before = get_rng_state_dict()
    beyond = {"numpy": {"position": 10**6}, "generator": {"buffer_pos": 99}}
    for wrong in ({}, {**state[part], **beyond[part]} if part in beyond else None):
        with pytest.raises(ConfigurationError, match="state_dict is not what get_rng_state_dict returned"):
            load_rng_state_dict({**state, part: wrong})
        assert are_equal(get_rng_state_dict(), before)
