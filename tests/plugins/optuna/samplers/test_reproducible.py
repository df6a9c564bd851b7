from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import TrialState

from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.optuna.samplers.reproducible import ReproducibleSampler
from tests.plugins.optuna.sampler_parts import (
    MAKERS,
    EveryNth,
    Killed,
    MortalStorage,
    make_objective,
    run_study,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def make(name: str, seed: int = 3) -> ReproducibleSampler:
    return ReproducibleSampler(MAKERS[name], seed)


@functools.cache
def uninterrupted(name: str) -> tuple[int, list[tuple[Any, ...]]]:
    """Return the number of trials of the sampler's study, and the trials."""
    trials = {"gp": 8}.get(name, 24)
    return trials, table(run_study(name, lambda: make(name), trials))


@pytest.mark.parametrize("nth", [1, 3])
@pytest.mark.parametrize("name", MAKERS)
def test_killed_trials_do_not_change_the_study(name: str, nth: int) -> None:
    """A study in which every n-th trial is killed, at each of its suggestions, ends with the same trials."""
    trials, expected = uninterrupted(name)
    killer = EveryNth(nth)

    study = run_study(name, lambda: make(name), trials, stop=killer)

    assert killer.kills >= trials // nth - 1
    assert table(study) == expected


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", MAKERS)
def test_kill_after_any_write(name: str, seed: int) -> None:
    """A study that is killed after any write to the storage, also by the sampler, ends with the same trials."""
    trials, expected = uninterrupted(name)
    storage = MortalStorage(seed)

    study = run_study(name, lambda: make(name), trials, storage=storage)

    assert storage.kills > trials // 3
    assert table(study) == expected


@pytest.mark.parametrize("name", ["tpe-multivariate", "cmaes", "nsga2"])
def test_killed_trials_on_sqlite(name: str, tmp_path: Path) -> None:
    """The same holds for a study in a database."""
    trials, expected = 13, uninterrupted(name)[1][:13]
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")

    study = run_study(name, lambda: make(name), trials, storage=storage, stop=EveryNth(2))
    found = table(study)
    storage.remove_session()
    storage.engine.dispose()

    assert found == expected


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"brute-force"}))  # It counts the failed attempt as visited.
def test_retry_in_another_slot(name: str) -> None:
    """The retry that Optuna's callback creates for a killed trial gets the suggestions of the killed one."""
    trials, expected = uninterrupted(name)
    killed_one = trials - 2

    def stop(trial: optuna.Trial) -> None:
        if trial.number == killed_one and "x" in trial.params:
            raise Killed

    study = optuna.create_study(sampler=make(name))
    with pytest.raises(Killed):
        study.optimize(make_objective(name, stop), n_trials=trials)
    stale = study.trials[killed_one]
    study._storage.set_trial_state_values(stale._trial_id, TrialState.FAIL)
    RetryHeartbeatStaleTrialCallback()(study, stale)
    study.sampler = make(name)
    study.optimize(make_objective(name, lambda _: None), n_trials=1)

    retried = study.trials[-1]
    assert retried.number == killed_one + 1
    assert retried.params == expected[killed_one][2]


@pytest.mark.parametrize("name", ["nsga2", "nsga3", "tpe"])
def test_multi_objective_with_constraints(name: str) -> None:
    """A study with two objectives and a constraint, killed in every trial, ends with the same trials."""

    def run(killer: Callable[[optuna.Trial], None]) -> list[tuple[Any, ...]]:
        storage = optuna.storages.InMemoryStorage()

        def objective(trial: optuna.Trial) -> tuple[float, float]:
            killer(trial)
            x = trial.suggest_float("x", 0, 5)
            killer(trial)
            y = trial.suggest_float("y", 0, 3)
            killer(trial)
            trial.set_constraint("disc", (x - 5) ** 2 + y**2 - 25)
            return 4 * x**2 + 4 * y**2, (x - 5) ** 2 + (y - 5) ** 2

        while True:
            study = optuna.create_study(
                storage=storage,
                study_name="two",
                load_if_exists=True,
                directions=["minimize", "minimize"],
                sampler=make(name),
            )
            try:
                while len(study.get_trials(states=(TrialState.COMPLETE,))) < 20:
                    study.optimize(objective, n_trials=1)
            except Killed:
                for trial in study.get_trials(states=(TrialState.RUNNING,)):
                    storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            else:
                return table(study)

    killer = EveryNth(1)
    assert run(killer) == run(lambda _: None)
    assert killer.kills > 10


def test_threads_do_not_matter() -> None:
    """Trial k gets the same suggestions with one thread and with four, for which Optuna calls `reseed_rng`."""
    tables = []
    for n_jobs in (1, 4):
        study = optuna.create_study(sampler=make("random"))
        study.optimize(make_objective("random", lambda _: None), n_trials=24, n_jobs=n_jobs)
        tables.append([trial.params for trial in study.trials])

    assert tables[0] == tables[1]
    assert len({tuple(params.items()) for params in tables[0]}) == 24


def test_seed_decides() -> None:
    """Another seed changes the suggestions, and `reseed_rng` does not."""
    sampler = make("random")
    sampler.reseed_rng()

    again = table(run_study("random", lambda: sampler, 5))
    other = table(run_study("random", lambda: make("random", seed=4), 5))

    assert again == uninterrupted("random")[1][:5]
    assert all(one[2] != another[2] for one, another in zip(again, other, strict=True))


def test_parameters_draw_independently() -> None:
    """Two parameters with one range, and one parameter in two trials, get different values."""
    study = optuna.create_study(sampler=make("random"))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1) - trial.suggest_float("y", 0, 1), n_trials=20)

    assert len({value for trial in study.trials for value in trial.params.values()}) == 40


@pytest.mark.parametrize("name", ["grid", "brute-force"])
def test_exhaustive_search_visits_each_point_once(name: str) -> None:
    """With every trial killed once, a grid of 24 points and a tree of 30 are visited completely, each point once."""
    points = {"grid": 24, "brute-force": 30}[name]

    study = run_study(name, lambda: make(name), points, stop=EveryNth(1))

    assert len({tuple(sorted(trial.params.items())) for trial in study.trials}) == points == len(study.trials)


@pytest.mark.parametrize("scramble", [False, True])
@pytest.mark.parametrize("kills", [False, True])
def test_low_discrepancy_sequence_is_kept(kills: bool, scramble: bool) -> None:
    """The points of a QMC study are those of Optuna's own sampler, in order, with and without kills."""

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if kills and trial.number not in killed:
            killed.add(trial.number)
            raise Killed
        return x + trial.suggest_float("y", 0, 1)

    def run(sampler: BaseSampler) -> list[dict[str, Any]]:
        study = optuna.create_study(sampler=sampler)
        while len(study.get_trials(states=(TrialState.COMPLETE,))) < 17:
            try:
                study.optimize(objective, n_trials=1)
            except Killed:
                study._storage.set_trial_state_values(study.trials[-1]._trial_id, TrialState.WAITING)
        return [trial.params for trial in study.trials[1:]]  # Trial 0 is sampled at random.

    killed: set[int] = set()
    seeds: list[int] = []

    def make_qmc(seed: int) -> BaseSampler:
        seeds.append(seed)
        return QMCSampler(seed=seed, scramble=scramble, warn_independent_sampling=False)

    sampler = ReproducibleSampler(make_qmc, 0)
    found = run(sampler)
    kills = False
    sampler._make("study")

    assert found == run(make_qmc(seeds[-1]))


def test_class_or_partial_is_seeded_by_name() -> None:
    """A sampler class or a partial of one can be passed: the seed is passed by name, not as the first argument."""
    plain = ReproducibleSampler(TPESampler, 5)
    partial = ReproducibleSampler(functools.partial(TPESampler, multivariate=False), 5)

    assert str(plain) == str(partial) == "ReproducibleSampler(TPESampler)"
    assert plain._make("a")._random_sampler._rng.rng.rand() == partial._make("a")._random_sampler._rng.rng.rand()  # type: ignore[attr-defined]  # of TPESampler


def test_survives_pickling() -> None:
    """A sampler that is pickled gives the same suggestions."""
    sampler = pickle.loads(pickle.dumps(ReproducibleSampler(RandomSampler, 3)))

    assert table(run_study("random", lambda: sampler, 5)) == uninterrupted("random")[1][:5]


def test_trial_that_is_never_told_is_not_kept() -> None:
    """Trials that never finish leave no data in the sampler."""
    sampler = make("tpe-multivariate")
    study = optuna.create_study(sampler=sampler)
    for _ in range(12):
        study.ask({"x": FloatDistribution(0, 1)})

    assert sampler._inferring == {}


def test_calls_for_two_trials_are_not_mixed_up() -> None:
    """A call for one trial directly after the search space of another one gives the first trial's own values."""
    study = optuna.create_study(sampler=make("tpe-multivariate"))
    study.optimize(make_objective("tpe-multivariate", lambda _: None), n_trials=8)
    one, other = (study._storage.get_trial(study._storage.create_new_trial(study._study_id)) for _ in range(2))
    space = study.sampler.infer_relative_search_space(study, one)
    drawn = study.sampler.sample_relative(study, one, space)

    study.sampler.infer_relative_search_space(study, other)

    assert study.sampler.sample_relative(study, one, space) == drawn


def test_unusable_factories() -> None:
    """A factory that returns no sampler, always the same one, or one without the seed is rejected with the reason."""
    one = RandomSampler(seed=1)
    with pytest.raises(ArgumentTypeError, match="returned None: return a new Optuna sampler"):
        ReproducibleSampler(lambda _seed: None, 1)  # type: ignore[arg-type, return-value]  # the mistake tested
    with pytest.raises(ConfigurationError, match="the same RandomSampler twice: make a new one in each call"):
        ReproducibleSampler(lambda _seed: one, 1)
    with pytest.raises(ConfigurationError, match="leaves TPESampler._rng without a seed: pass its argument"):
        ReproducibleSampler(lambda _seed: TPESampler(), 1)
    with pytest.raises(ConfigurationError, match="leaves CmaEsSampler._independent_sampler._rng without a seed"):
        ReproducibleSampler(lambda seed: CmaEsSampler(seed=seed, independent_sampler=RandomSampler()), 1)
    with pytest.raises(ConfigurationError, match="out of range"):
        ReproducibleSampler(RandomSampler, -1)


def _contract(*factories: Callable[[int], BaseSampler]) -> Any:
    def sampler(_self: object, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return lambda: ReproducibleSampler(request.param, 1)

    return pytest.fixture(params=factories)(sampler)


def _relative_tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=0, multivariate=True)


def _relative_cmaes(seed: int) -> BaseSampler:
    return CmaEsSampler(seed=seed, n_startup_trials=0, warn_independent_sampling=False)


def _univariate_tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=0, multivariate=False)


def _qmc(seed: int) -> BaseSampler:
    return QMCSampler(seed=seed, warn_independent_sampling=False)


def _nsga2(seed: int) -> BaseSampler:
    return NSGAIISampler(seed=seed, population_size=3)


class TestBasicContract(BasicSamplerTestCase):
    """Optuna's contract for every sampler."""

    sampler = _contract(RandomSampler, _univariate_tpe, _relative_tpe, _relative_cmaes, _nsga2, _qmc)


class TestRelativeContract(RelativeSamplerTestCase):
    """Optuna's contract for samplers that draw several parameters jointly."""

    sampler = _contract(_relative_tpe)


class TestMultiObjectiveContract(MultiObjectiveSamplerTestCase):
    """Optuna's contract for samplers that support several objectives."""

    sampler = _contract(RandomSampler, _univariate_tpe, _nsga2, _qmc)


class TestSingleOnlyContract(SingleOnlySamplerTestCase):
    """Optuna's contract for samplers that support a single objective."""

    sampler = _contract(_relative_cmaes)
