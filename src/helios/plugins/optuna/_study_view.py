"""A study on the ranks that do not hold it: what they are sent over a store, and what they make of that."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, Final, NoReturn

import optuna
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from helios.core.distributed import get_dist_info
from helios.core.logging import get_root_logger
from helios.errors import ArgumentTypeError, StudyViewError
from helios.plugins.optuna.space.space import SearchSpace
from helios.ranks.messages import encode_message, register_message_type

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRIAL: Final = (  # What Optuna makes a trial of, besides its id in a storage.
    *("number", "state", "values", "datetime_start", "datetime_complete", "params", "distributions", "user_attrs"),
    *("system_attrs", "intermediate_values"),
)

register_message_type(TrialState, lambda state: state.name, TrialState.__getitem__)
register_message_type(StudyDirection, lambda direction: direction.name, StudyDirection.__getitem__)
register_message_type(FloatDistribution, distribution_to_json, json_to_distribution)
register_message_type(IntDistribution, distribution_to_json, json_to_distribution)
register_message_type(CategoricalDistribution, lambda domain: domain.choices, CategoricalDistribution)
register_message_type(SearchSpace, SearchSpace.to_dict, SearchSpace.from_dict)
register_message_type(
    FrozenTrial,
    lambda trial: {name: getattr(trial, name) for name in _TRIAL},
    lambda fields: FrozenTrial(**fields, value=None, trial_id=0),
)


def describe_study(study: optuna.Study) -> dict[str, Any]:
    """Return what `view_study` shows of a study; all of it can be sent in a message."""
    return {
        "study_name": study.study_name,
        "directions": study.directions,
        "metric_names": study.metric_names,
        "user_attrs": _legible(study.user_attrs, "the study"),
        "trials": [_describe_trial(trial) for trial in study.get_trials(deepcopy=False)],
    }


def _describe_trial(trial: FrozenTrial) -> FrozenTrial:
    whose = f"trial {trial.number}"
    described = copy.copy(trial)
    described.params = _legible(trial.params, whose)
    described.distributions = {
        name: CategoricalDistribution([*_legible(dict(enumerate(domain.choices)), f"{name} of {whose}").values()])
        if isinstance(domain, CategoricalDistribution)
        else domain
        for name, domain in trial.distributions.items()
    }
    described.user_attrs = _legible(trial.user_attrs, whose)
    described._system_attrs = _legible(trial.system_attrs, whose)  # noqa: SLF001 - a trial has no other way.
    return described


def _legible(values: Mapping[Any, Any], whose: str) -> dict[Any, Any]:
    """Return values with a text in the place of those that a message cannot hold; a storage in memory takes any."""
    legible = {}
    for name, value in values.items():
        try:
            encode_message(value)
            legible[name] = value
        except ArgumentTypeError:
            get_root_logger().warning(
                "%r of %s is a %s: ranks other than 0 see its text alone", name, whose, type(value).__qualname__
            )
            legible[name] = repr(value)
    return legible


class _Sealed(InMemoryStorage):
    """A study that can be read, and nothing else."""

    def _refuse(self, *_arguments: Any, **_options: Any) -> NoReturn:
        raise StudyViewError(
            f"this is a view of a study that rank 0 holds, and this is rank {get_dist_info().rank}: change it there"
        )

    create_new_study = delete_study = create_new_trial = _refuse
    set_study_user_attr = set_study_system_attr = _refuse
    set_trial_param = set_trial_state_values = set_trial_intermediate_value = _refuse
    set_trial_user_attr = set_trial_system_attr = _refuse


def view_study(described: dict[str, Any]) -> optuna.Study:
    """Return a study that can only be read, as `describe_study` has described it."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=described["study_name"], directions=described["directions"])
    for key, value in described["user_attrs"].items():
        study.set_user_attr(key, value)
    if described["metric_names"] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # Rank 0's user was warned.
            study.set_metric_names(described["metric_names"])
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in described["trials"]:
        # Not through `study.add_trials`, which refuses what was enqueued outside of the range that it was suggested in.
        storage.create_new_trial(study_id, template_trial=trial)
    storage.__class__ = _Sealed
    return study
