"""`ReproducibleSampler`, a sampler without state: its suggestions follow from the study and a seed."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import TYPE_CHECKING, Any, Final

from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    CmaEsSampler,
    GridSampler,
    PartialFixedSampler,
    QMCSampler,
)

from helios.core.rng import check_seed, derive_seed
from helios.errors import ArgumentTypeError, ConfigurationError
from helios.plugins.optuna.optuna_internals import (
    base_sampler_of,
    generation_key,
    is_unseeded,
    set_sample_id,
    storage_of,
    trial_id_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

_SEED_MASK: Final = 0xFFFF_FFFF  # NumPy's generators, which Optuna's samplers use, take 32 bits.
_RETRIED: Final = (
    "failed_trial"  # The system attribute in which Optuna's retry callbacks store the first attempt's number.
)
_RELATIVE_PARAMS: Final = ":relative_params:"


class ReproducibleSampler(BaseSampler):
    """Suggests values that depend only on the seed, the trial's original number and the finished trials.

    An interrupted study that is resumed with a new sampler object, even in the middle of a trial, gets the same
    suggestions as an uninterrupted one, so that no sampler has to be saved. For every call a new inner sampler is
    created, with a seed derived from the trial and from the parameter or the relative search space. Between two calls
    it keeps only what it writes into the study. The retry of a trial gets the suggestions of the first attempt.

    The inner sampler sees the trials that other workers are running: some samplers avoid their values. With a single
    worker there are none.

    Args:
        make_sampler: creates a new inner sampler from a seed in [0, 2**32). The seed is passed by name if there is a
            parameter `seed`, so that a class such as `TPESampler` or a `functools.partial` of one can be passed.
        seed: the seed of the study in [0, 2**63).

    Raises:
        ArgumentTypeError: if `make_sampler` is not callable, or does not return a sampler.
        ConfigurationError: if it returns the same sampler twice, or one that does not use the seed; or if `seed` is out
            of range.
    """

    def __init__(self, make_sampler: Callable[..., BaseSampler], seed: int) -> None:
        if not callable(make_sampler):
            raise ArgumentTypeError(
                f"make_sampler is {make_sampler!r}: pass a function that makes a sampler from a seed, or a class"
            )
        self._make_sampler = make_sampler
        self._by_name = _takes_seed_by_name(make_sampler)
        self._seed = check_seed(seed)
        first = self._make("check")
        _check_sampler(first, self._make("check"))
        self._kind = type(_innermost(first))
        # By thread, the sampler that has inferred the relative search space and must draw from it.
        self._inferring: dict[int, tuple[FrozenTrial, BaseSampler]] = {}

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._kind.__name__})"

    def reseed_rng(self) -> None:
        """Do nothing: Optuna calls this so that threads draw different values, and here trials always do."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Call `before_trial` of a new inner sampler."""
        # Other trials would take the values of an earlier attempt for those of a running trial.
        for key, value in trial.system_attrs.items():
            if _RELATIVE_PARAMS in key and value:
                storage_of(study).set_trial_system_attr(trial_id_of(trial), key, "")
        self._make_for(trial, "before").before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the search space from which a new inner sampler draws jointly."""
        sampler = self._make_for(trial, "relative")
        search_space = sampler.infer_relative_search_space(study, trial)
        self._inferring[threading.get_ident()] = trial, sampler
        return search_space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values that the inner sampler draws from the relative search space."""
        inferred_for, sampler = self._inferring.pop(threading.get_ident(), (None, None))
        if sampler is None or inferred_for is not trial:
            sampler = self._make_for(trial, "relative")
            sampler.infer_relative_search_space(study, trial)  # Some samplers keep a result of it.
        inner = _innermost(sampler)
        if isinstance(inner, BaseGASampler):
            trial = self._with_generation(study, trial, inner)
        if isinstance(inner, QMCSampler):
            # For a retry it would take the point after the study's last one. Trial 0 is drawn independently.
            set_sample_id(inner, max(_original_number(trial) - 1, 0))
        if isinstance(inner, CmaEsSampler):
            trial = copy.copy(trial)
            trial.number = _original_number(trial)  # It adds the number to its seed.
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value that a new inner sampler draws for one parameter, in any order of suggestions."""
        sampler = self._make_for(trial, "independent", param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Call `after_trial` of a new inner sampler."""
        self._make_for(trial, "after").after_trial(study, trial, state, values)

    def _make(self, *keys: int | str) -> BaseSampler:
        seed = derive_seed(self._seed, "sampler", *keys) & _SEED_MASK
        return self._make_sampler(seed=seed) if self._by_name else self._make_sampler(seed)

    def _make_for(self, trial: FrozenTrial, *keys: str) -> BaseSampler:
        # All trials share the order of a grid and the scrambling of a low-discrepancy sequence, hence the seed.
        if issubclass(self._kind, GridSampler) or (issubclass(self._kind, QMCSampler) and keys == ("relative",)):
            return self._make("study")
        return self._make("trial", _original_number(trial), *keys)

    def _with_generation(self, study: Study, trial: FrozenTrial, sampler: BaseGASampler) -> FrozenTrial:
        """Return a copy of the trial with its generation, after the parents of the generation were selected.

        A sampler that selects the parents has them in another order than a sampler that reads them from the study, for
        example for the retry of the trial. So a separate sampler selects them first, and the trial always reads them.
        """
        generation = sampler.get_trial_generation(study, trial)
        selector = _innermost(self._make("generation", generation))
        if isinstance(selector, BaseGASampler):
            selector.get_parent_population(study, generation)
        trial = copy.copy(trial)
        trial.system_attrs = {**trial.system_attrs, generation_key(sampler): generation}
        return trial


def _takes_seed_by_name(make_sampler: Callable[..., BaseSampler]) -> bool:
    try:
        return "seed" in inspect.signature(make_sampler).parameters
    except ValueError:  # Some builtins have no signature.
        return False


def _original_number(trial: FrozenTrial) -> int:
    number: int = trial.system_attrs.get(_RETRIED, trial.number)
    return number


def _innermost(sampler: BaseSampler) -> BaseSampler:
    while isinstance(sampler, PartialFixedSampler):
        sampler = base_sampler_of(sampler)
    return sampler


def _check_sampler(first: BaseSampler, second: BaseSampler) -> None:
    if not isinstance(first, BaseSampler):
        raise ArgumentTypeError(f"make_sampler returned {first!r}: return a new Optuna sampler in each call")
    if first is second:
        raise ConfigurationError(
            f"make_sampler returned the same {type(first).__name__} twice: make a new one in each call"
        )
    if unseeded := _find_unseeded(first, type(first).__name__):
        raise ConfigurationError(f"make_sampler leaves {unseeded} without a seed: pass its argument to the sampler")


def _find_unseeded(sampler: BaseSampler, path: str) -> str:
    """Return the path of a random generator that would take its seed from the system; empty if there is none."""
    for name, part in vars(sampler).items():
        if is_unseeded(part):
            return f"{path}.{name}"
        if isinstance(part, BaseSampler) and (unseeded := _find_unseeded(part, f"{path}.{name}")):
            return unseeded
    return ""
