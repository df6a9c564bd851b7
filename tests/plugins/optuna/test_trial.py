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
    """Counts the calls of `sample_independent`."""

    asked = 0

    def sample_independent(self, *arguments: Any) -> Any:
        self.asked += 1
        return super().sample_independent(*arguments)


def make_remote(trial: optuna.Trial) -> tuple[RemoteTrial, ObjectHost]:
    """Return the proxy that another process gets for a trial, and its object host."""
    home = ObjectHost()
    sent = pickle.loads(home.pack({"trial": trial, "again": trial}))
    assert sent["trial"] is sent["again"]
    return sent["trial"], home


def test_a_remote_trial_gives_what_the_trial_gives() -> None:
    """A remote trial gives the trial's suggestions, pruning decisions, attributes and parameters, each drawn once."""
    sampler = Counting(seed=0)
    study = optuna.create_study(sampler=sampler, pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    trial = study.ask()
    remote, home = make_remote(trial)
    with host_channel(home.answer):
        values = [
            remote.suggest_float("x", 0.0, 1.0),
            remote.suggest_int("n", 1, 100, log=True),
            remote.suggest_categorical("kind", ("a", "b")),
        ]
        assert values == [
            trial.suggest_float("x", 0.0, 1.0),
            trial.suggest_int("n", 1, 100, log=True),
            trial.suggest_categorical("kind", ("a", "b")),
        ]
        assert sampler.asked == 3
        assert remote.params == trial.params
        assert remote.distributions == trial.distributions
        assert remote.relative_params == {}
        assert remote.datetime_start == trial.datetime_start
        remote.set_user_attr("note", [1, 2])
        assert remote.user_attrs == trial.user_attrs == {"note": [1, 2]}
        assert not remote.should_prune()
        remote.report(2.0, 1)
        assert remote.should_prune()
        assert study.trials[0].intermediate_values == {1: 2.0}
    assert remote.number == trial.number == 0
    assert repr(remote) == "RemoteTrial(number=0)"


def test_a_remote_trial_raises_what_the_trial_raises() -> None:
    """An error of the trial is raised by the remote trial with its own type; unknown calls are named."""
    remote, home = make_remote(optuna.create_study().ask())
    with host_channel(home.answer):
        with pytest.raises(ValueError, match="low"):
            remote.suggest_float("x", 2.0, 1.0)
        with pytest.raises(UnknownNameError, match=r"a trial cannot be asked for 'study': there are \["):
            remote.ask("study")
    with pytest.raises(
        NotRunningError, match="suggest_int calls the process that called fit, and there is no channel to it"
    ):
        remote.suggest_int("n", 0, 1)


def test_a_space_is_recorded_by_a_remote_trial() -> None:
    """A remote trial that suggests a space records it with the study; another space is rejected."""
    study = optuna.create_study()
    remote, home = make_remote(study.ask())
    space = SearchSpace.from_dict({"n": {"kind": "int", "low": 0, "high": 9}})
    with host_channel(home.answer):
        values = space.suggest(remote)
        assert set(values) == {"n"}
        space.check(study)
        with pytest.raises(ConfigurationError, match="was searched with another space"):
            SearchSpace.from_dict({"n": {"kind": "int", "low": 0, "high": 8}}).suggest(remote)


def test_a_trial_that_is_shared_is_suggested_once() -> None:
    """Threads that suggest the same parameters at the same time call the sampler once for each."""
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
    """A thread that serves one trial after another gets the values that the trials' own thread would get."""

    def search(*, elsewhere: int) -> list[dict[str, Any]]:
        """Have another thread, the same for all trials, suggest every n-th parameter."""
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
    """All public methods and properties of a shared trial give the results of the wrapped one."""
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
    """Every public method of Optuna's trial is in shared_trial.py: a new one would be called without the lock."""
    public = {name for name in vars(optuna.Trial) if not name.startswith("_")}
    assert len(public) > 10
    assert public <= set(vars(SharedTrial))
