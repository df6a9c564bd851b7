"""A sampler without a memory: what it suggests can be worked out again from the study alone."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import TYPE_CHECKING, Any, Final

from optuna.samplers import BaseSampler, CmaEsSampler, GridSampler, PartialFixedSampler, QMCSampler
from optuna.samplers._ga import BaseGASampler
from optuna.samplers._lazy_random_state import LazyRandomState

from helios.core.rng import check_seed, derive_seed
from helios.errors import ArgumentTypeError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

_SEED_MASK: Final = 0xFFFF_FFFF  # NumPy's generators, which Optuna's samplers use, take 32 bits.
_RETRIED: Final = "failed_trial"  # Where Optuna's retry callbacks put the number of the first attempt.
_RELATIVE_PARAMS: Final = ":relative_params:"


class ReproducibleSampler(BaseSampler):
    """Suggests for trial k what follows from (seed, original number of k, finished trials), whoever asks and when.

    A study that was interrupted, in the middle of a trial even, and goes on with a new sampler object suggests what it
    would have suggested, so no sampler has to be saved. The sampler inside is made anew for every question, from a seed
    that is derived from what is asked: trial, and parameter or relative search space. It keeps nothing between
    two questions but what it writes into the study. A trial that is retried in a slot of its own draws as its first
    attempt did.

    Trials that other workers run at the moment are shown to the sampler inside as they are: some samplers keep away
    from them. With one worker there are none.

    Args:
        make_sampler: makes the sampler to draw from, a new one for each call, from a seed in [0, 2**32); its argument
            is passed by name if it is called `seed`, so a class such as `TPESampler` or a `functools.partial` of one
            will do.
        seed: the seed of the study in [0, 2**63).

    Raises:
        ArgumentTypeError: if `make_sampler` cannot be called, or does not return a sampler.
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
        # The sampler that has answered the first half of a question, by thread.
        self._halfway: dict[int, tuple[FrozenTrial, BaseSampler]] = {}

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._kind.__name__})"

    def reseed_rng(self) -> None:
        """Do nothing: Optuna asks for it so that threads do not draw alike, and here trials never do."""

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let a new sampler prepare the trial."""
        # What an earlier attempt left must not be taken for the plans of another trial.
        for key, value in trial.system_attrs.items():
            if _RELATIVE_PARAMS in key and value:
                study._storage.set_trial_system_attr(trial._trial_id, key, "")  # noqa: SLF001 - what samplers do.
        self._make_for(trial, "before").before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the search space of which a new sampler draws all parameters at once."""
        sampler = self._make_for(trial, "relative")
        search_space = sampler.infer_relative_search_space(study, trial)
        self._halfway[threading.get_ident()] = trial, sampler
        return search_space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return what a new sampler draws for this trial out of the relative search space."""
        inferred_for, sampler = self._halfway.pop(threading.get_ident(), (None, None))
        if sampler is None or inferred_for is not trial:
            sampler = self._make_for(trial, "relative")
            sampler.infer_relative_search_space(study, trial)  # Some keep a part of the answer for what follows.
        inner = _innermost(sampler)
        if isinstance(inner, BaseGASampler):
            trial = self._settle_generation(study, trial, inner)
        if isinstance(inner, QMCSampler):
            # Its own count in the study would go on when a trial is drawn again. Trial 0 is drawn independently.
            sample_id = max(_original_number(trial) - 1, 0)
            inner._find_sample_id = lambda *_: sample_id  # type: ignore[method-assign] # noqa: SLF001 - no public way.
        if isinstance(inner, CmaEsSampler):
            trial = copy.copy(trial)
            trial.number = _original_number(trial)  # It adds the number to its seed.
        return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return what a new sampler draws for this trial and parameter, whichever were drawn before."""
        sampler = self._make_for(trial, "independent", param_name)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Let a new sampler note how the trial ended."""
        self._make_for(trial, "after").after_trial(study, trial, state, values)

    def _make(self, *keys: int | str) -> BaseSampler:
        seed = derive_seed(self._seed, "sampler", *keys) & _SEED_MASK
        return self._make_sampler(seed=seed) if self._by_name else self._make_sampler(seed)

    def _make_for(self, trial: FrozenTrial, *keys: str) -> BaseSampler:
        # A grid is shuffled, and a low-discrepancy sequence scrambled, once for all trials.
        if issubclass(self._kind, GridSampler) or (issubclass(self._kind, QMCSampler) and keys == ("relative",)):
            return self._make("study")
        return self._make("trial", _original_number(trial), *keys)

    def _settle_generation(self, study: Study, trial: FrozenTrial, sampler: BaseGASampler) -> FrozenTrial:
        """Return a copy of the trial that knows its generation, after the generation's parents were chosen.

        The trial that chooses them has them in another order than one that finds them in the study, as it does itself
        when it is retried. So they are always chosen first, by a sampler of their own, and found then.
        """
        generation = sampler.get_trial_generation(study, trial)
        chooser = _innermost(self._make("generation", generation))
        if isinstance(chooser, BaseGASampler):
            chooser.get_parent_population(study, generation)
        trial = copy.copy(trial)
        key = sampler._get_generation_key()  # noqa: SLF001 - the base class offers it to samplers.
        trial.system_attrs = {**trial.system_attrs, key: generation}
        return trial


def _takes_seed_by_name(make_sampler: Callable[..., BaseSampler]) -> bool:
    try:
        return "seed" in inspect.signature(make_sampler).parameters
    except ValueError:  # Some builtins do not tell what they take.
        return False


def _original_number(trial: FrozenTrial) -> int:
    number: int = trial.system_attrs.get(_RETRIED, trial.number)
    return number


def _innermost(sampler: BaseSampler) -> BaseSampler:
    while isinstance(sampler, PartialFixedSampler):
        sampler = sampler._base_sampler  # noqa: SLF001 - no public way to it.
    return sampler


def _check_sampler(first: BaseSampler, second: BaseSampler) -> None:
    if not isinstance(first, BaseSampler):
        raise ArgumentTypeError(f"make_sampler returned {first!r}: it shall return a new optuna sampler for each call")
    if first is second:
        raise ConfigurationError(
            f"make_sampler returned the same {type(first).__name__} twice: make a new one in each call"
        )
    if unseeded := _find_unseeded(first, type(first).__name__):
        raise ConfigurationError(f"make_sampler leaves {unseeded} without a seed: pass on the seed that it is given")


def _find_unseeded(sampler: BaseSampler, path: str) -> str:
    """Return the path of a generator that would draw its seed from the system, or nothing if there is none."""
    for name, part in vars(sampler).items():
        if isinstance(part, LazyRandomState) and part._rng is None:  # noqa: SLF001 - asking for it would seed it.
            return f"{path}.{name}"
        if isinstance(part, BaseSampler) and (unseeded := _find_unseeded(part, f"{path}.{name}")):
            return unseeded
    return ""
