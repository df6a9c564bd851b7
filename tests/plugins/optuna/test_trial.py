from __future__ import annotations

import functools
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import optuna
import pytest

from helios.errors import ConfigurationError, NotRunningError, UnknownNameError
from helios.plugins.optuna import SearchSpace
from helios.plugins.optuna.shared_trial import SharedTrial
from helios.ranks.object_host import ObjectHost, host_channel

if TYPE_CHECKING:
    from helios.plugins.optuna.trial import RemoteTrial


class Counting(optuna.samplers.RandomSampler):
    """Counts how often it is asked."""

    asked = 0

    def sample_independent(self, *arguments: Any) -> Any:
        self.asked += 1
        return super().sample_independent(*arguments)


def make_stand_in(trial: optuna.Trial) -> tuple[RemoteTrial, ObjectHost]:
    """Return what another process is sent in the place of a trial, and its home."""
    home = ObjectHost()
    sent = pickle.loads(home.pack({"trial": trial, "again": trial}))
    assert sent["trial"] is sent["again"]
    return sent["trial"], home


def test_a_stand_in_answers_as_the_trial_does() -> None:
    """Suggestions, reports, pruning, attributes and parameters are the trial's, and the sampler's but once."""
    sampler = Counting(seed=0)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    trial = study.ask()
    stand_in, home = make_stand_in(trial)
    with host_channel(home.answer):
        values = [
            stand_in.suggest_float("x", 0.0, 1.0),
            stand_in.suggest_int("n", 1, 100, log=True),
            stand_in.suggest_categorical("kind", ("a", "b")),
        ]
        assert values == [
            trial.suggest_float("x", 0.0, 1.0),
            trial.suggest_int("n", 1, 100, log=True),
            trial.suggest_categorical("kind", ("a", "b")),
        ]
        assert sampler.asked == 3
        assert stand_in.params == trial.params
        assert stand_in.distributions == trial.distributions
        assert stand_in.relative_params == {}
        assert stand_in.datetime_start == trial.datetime_start
        stand_in.set_user_attr("note", [1, 2])
        assert stand_in.user_attrs == trial.user_attrs == {"note": [1, 2]}
        assert not stand_in.should_prune()
        stand_in.report(2.0, 1)
        assert stand_in.should_prune()
        assert study.trials[0].intermediate_values == {1: 2.0}
    assert stand_in.number == trial.number == 0
    assert repr(stand_in) == "RemoteTrial(number=0)"


def test_a_stand_in_raises_what_the_trial_raises() -> None:
    """An error of the trial is raised by its stand-in, as itself; unknown questions are named."""
    stand_in, home = make_stand_in(optuna.create_study().ask())
    with host_channel(home.answer):
        with pytest.raises(ValueError, match="low"):
            stand_in.suggest_float("x", 2.0, 1.0)
        with pytest.raises(UnknownNameError, match=r"a trial cannot be asked for 'study': there are \["):
            stand_in.ask("study")
    with pytest.raises(
        NotRunningError, match="suggest_int asks the process that called fit, and there is no way to it"
    ):
        stand_in.suggest_int("n", 0, 1)


def test_a_space_is_recorded_by_a_stand_in() -> None:
    """A rank that suggests a space has it recorded with the study; another space is refused as ever."""
    study = optuna.create_study()
    stand_in, home = make_stand_in(study.ask())
    space = SearchSpace.from_dict({"n": {"kind": "int", "low": 0, "high": 9}})
    with host_channel(home.answer):
        values = space.suggest(stand_in)
        assert set(values) == {"n"}
        space.check(study)
        with pytest.raises(ConfigurationError, match="was searched with another space"):
            SearchSpace.from_dict({"n": {"kind": "int", "low": 0, "high": 8}}).suggest(stand_in)


def test_a_trial_that_is_shared_is_suggested_once() -> None:
    """Threads that suggest the same parameters at once consult the sampler once for each."""
    sampler = Counting(seed=0)
    trial = SharedTrial(optuna.create_study(sampler=sampler).ask())
    gate, seen = threading.Barrier(4), []

    def suggest() -> None:
        gate.wait()
        seen.append([trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(50)])

    threads = [threading.Thread(target=suggest) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert sampler.asked == 50


@pytest.mark.parametrize("multivariate", [False, True])
def test_a_shared_trial_shows_its_sampler_the_same_trials_in_every_thread(*, multivariate: bool) -> None:
    """A thread that serves one trial after another draws what the trials' own thread would have drawn."""

    def search(*, elsewhere: int) -> list[dict[str, Any]]:
        """Let another thread, the same for all trials, suggest one of every so many parameters."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=1, n_startup_trials=2, multivariate=multivariate)
        study = optuna.create_study(sampler=sampler)
        with ThreadPoolExecutor(max_workers=1) as other:
            for _ in range(8):
                trial = SharedTrial(study.ask())
                if elsewhere:
                    other.submit(getattr, trial, "relative_params").result()
                for number, name in enumerate("abc"):
                    suggest = functools.partial(trial.suggest_float, name, 0.0, 1.0)
                    if elsewhere and number % elsewhere == 0:
                        other.submit(suggest).result()
                    else:
                        suggest()
                study.tell(trial, sum(trial.params.values()))
        return [trial.params for trial in study.trials]

    expected = search(elsewhere=0)
    assert search(elsewhere=1) == expected
    assert search(elsewhere=2) == expected


def test_a_shared_trial_is_the_trial() -> None:
    """Every public method and property of Optuna's trial gives the same on a shared one, and the study records it."""
    study = optuna.create_study(sampler=Counting(seed=0), pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    trial = study.ask()
    shared = SharedTrial(trial)
    assert shared.suggest_float("x", 0.0, 1.0) == trial.suggest_float("x", 0.0, 1.0)
    assert shared.suggest_int("n", 1, 9) == trial.params["n"]
    assert shared.suggest_categorical("c", ["a", "b"]) == trial.params["c"]
    with pytest.warns(FutureWarning, match="deprecated"):
        assert shared.suggest_uniform("u", 0.0, 1.0) == trial.params["u"]
    shared.set_user_attr("note", 1)
    shared.set_constraint("limit", 2.0)
    assert not shared.should_prune()
    shared.report(2.0, 1)
    assert shared.should_prune()
    for name in (
        *("params", "distributions", "user_attrs", "constraints", "datetime_start", "number", "relative_params"),
        *("study", "storage", "relative_search_space"),
    ):
        assert getattr(shared, name) == getattr(trial, name), name
    with pytest.raises(AttributeError, match="no_such_name"):
        shared.no_such_name  # noqa: B018 - the access is what is tested.
    study.tell(shared, 1.0)
    (told,) = study.trials
    assert (told.value, told.params, told.intermediate_values) == (1.0, trial.params, {1: 2.0})


def test_every_public_method_of_a_trial_is_shared() -> None:
    """A method that a new Optuna adds to its trial would run without the lock: pass it on in shared_trial.py."""
    public = {name for name in vars(optuna.Trial) if not name.startswith("_")}
    assert len(public) > 10
    assert public <= set(vars(SharedTrial))
