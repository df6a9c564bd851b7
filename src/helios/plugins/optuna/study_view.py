"""A read-only view of a study for ranks other than 0: how it is sent through a store, and how it is rebuilt there."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any, Final

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
from helios.plugins.optuna.storage.delegating import DelegatingStorage
from helios.ranks.messages import encode_message, register_message_type

if TYPE_CHECKING:
    from collections.abc import Mapping

_TRIAL_FIELDS: Final = (  # The arguments of `FrozenTrial`, except its id in a storage.
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
    lambda trial: {name: getattr(trial, name) for name in _TRIAL_FIELDS},
    lambda fields: FrozenTrial(**fields, value=None, trial_id=0),
)


def describe_study(study: optuna.Study) -> dict[str, Any]:
    """Return the content of a study for `view_study`, in a form that can be sent as a message."""
    return {
        "study_name": study.study_name,
        "directions": study.directions,
        "metric_names": study.metric_names,
        "user_attrs": _as_sendable(study.user_attrs, "the study"),
        "trials": [_describe_trial(trial) for trial in study.get_trials(deepcopy=False)],
    }


def _describe_trial(trial: FrozenTrial) -> FrozenTrial:
    whose = f"trial {trial.number}"
    described = copy.copy(trial)
    described.params = _as_sendable(trial.params, whose)
    described.distributions = {
        name: CategoricalDistribution([*_as_sendable(dict(enumerate(domain.choices)), f"{name} of {whose}").values()])
        if isinstance(domain, CategoricalDistribution)
        else domain
        for name, domain in trial.distributions.items()
    }
    described.user_attrs = _as_sendable(trial.user_attrs, whose)
    described.system_attrs = _as_sendable(trial.system_attrs, whose)
    return described


def _as_sendable(values: Mapping[Any, Any], whose: str) -> dict[Any, Any]:
    """Return values with the `repr` of each that cannot be sent: a storage in memory accepts values of any type."""
    sendable = {}
    for name, value in values.items():
        try:
            encode_message(value)
            sendable[name] = value
        except ArgumentTypeError:
            get_root_logger().warning(
                "%r of %s is a %s: ranks other than 0 get its repr", name, whose, type(value).__qualname__
            )
            sendable[name] = repr(value)
    return sendable


class ReadOnlyStorage(DelegatingStorage):
    """A storage that can be read, and raises `StudyViewError` for every change."""

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the wrapped storage by its name, if it changes nothing.

        Raises:
            StudyViewError: if it would change a study.
        """
        if name.startswith(("create_", "delete_", "set_")):
            raise StudyViewError(
                f"this is a view of a study that rank 0 holds, and this is rank {get_dist_info().rank}: change it there"
            )
        return super().call(name, *args, **kwargs)


def view_study(described: dict[str, Any]) -> optuna.Study:
    """Return a read-only study with the content that `describe_study` returned."""
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=described["study_name"], directions=described["directions"])
    for key, value in described["user_attrs"].items():
        study.set_user_attr(key, value)
    if described["metric_names"] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # It was shown on rank 0.
            study.set_metric_names(described["metric_names"])
    study_id = storage.get_study_id_from_name(study.study_name)
    for trial in described["trials"]:
        # `study.add_trials` would reject a value that was enqueued outside of the range of its parameter.
        storage.create_new_trial(study_id, template_trial=trial)
    return optuna.load_study(study_name=study.study_name, storage=ReadOnlyStorage(storage))
