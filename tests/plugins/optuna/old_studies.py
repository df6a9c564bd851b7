"""An interrupted study with everything that `resume_study` could lose, and other studies in its database."""

from __future__ import annotations

import datetime
import math
import warnings
from typing import TYPE_CHECKING, Any, Final

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from helios.plugins.optuna.storage.owners import OWNER_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import FrozenTrial

NAME: Final = "mine"
SPACE: Final = {
    "rate": FloatDistribution(1e-6, 1.0, log=True),
    "layers": IntDistribution(1, 9, step=2),
    "kind": CategoricalDistribution(["a", "b", None, 3]),
}
# Its process is gone: this host was rebooted since.
FORMER_BOOT: Final = "11111111-2222-3333-4444-555555555555"

NUMBERS_BY_STATE: Final = {
    TrialState.COMPLETE: [0, 4, 8],
    TrialState.PRUNED: [1],
    TrialState.FAIL: [2, 7],
    TrialState.RUNNING: [3, 6],
    TrialState.WAITING: [5],
}


def args(url: str, **more: Any) -> dict[str, Any]:
    """Return the arguments of `resume_study` for the study."""
    return {"study_name": NAME, "storage": url, "load_if_exists": True, **more}


def make(url: str, owner: Mapping[str, Any] | None = None) -> optuna.Study:
    """Create the study, with running trials with and without an owner, and the other studies."""
    study = optuna.create_study(storage=url, study_name=NAME, direction="maximize")
    study.set_user_attr("made by", {"name": "somebody", "year": 2031})
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["accuracy"])
    for number in range(9):
        study.add_trial(_make_trial(number, owner))
    for name in ("mine too", "other"):
        neighbour = optuna.create_study(storage=url, study_name=name, directions=["minimize", "maximize"])
        neighbour.set_user_attr("neighbour", name)
        neighbour.add_trial(create_trial(values=[1.0, math.inf], params={"z": 3}, distributions={"z": SPACE["layers"]}))
        neighbour.add_trial(create_trial(state=TrialState.FAIL, intermediate_values={0: 1.0}))
        neighbour.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"a": 1}))
    return study


def _make_trial(number: int, owner: Mapping[str, Any] | None) -> FrozenTrial:
    state = next(state for state, numbers in NUMBERS_BY_STATE.items() if number in numbers)
    has_params = number != 7
    trial = create_trial(
        state=state,
        values=[number / 3] if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        params={"rate": 0.1 / (number + 3), "layers": 1 + 2 * (number % 4), "kind": ("a", None, 3)[number % 3]}
        if has_params
        else None,
        distributions=SPACE if has_params else None,
        intermediate_values={0: number / 7, 3: math.nan, 1: math.inf, 2: -math.inf, 10: 1e-300},
        user_attrs={"note": f"trial {number}", "list": [1, None, "ü"]},
        system_attrs={"grid": number, **({OWNER_KEY: dict(owner)} if owner and number == 3 else {})},
        constraints={"memory": number - 4.5, "time": 0.0} if number % 2 == 0 else None,
    )
    if state is not TrialState.WAITING:
        trial.datetime_start = datetime.datetime(2031, 1, 2, 3, 4, number, 123456)  # noqa: DTZ001 - as Optuna gives it.
    if state.is_finished():
        trial.datetime_complete = datetime.datetime(2031, 1, 3, 3, 4, number, 654321)  # noqa: DTZ001 - as above.
    return trial


def snapshot(url: str) -> dict[str, list[str]]:
    """Return the content of each study of a database, as text, in which NaN equals NaN."""
    storage = optuna.storages.RDBStorage(url)
    try:
        return {
            study.study_name: [
                repr((study.directions, sorted(study.user_attrs.items()), sorted(study.system_attrs.items()))),
                *map(describe, storage.get_all_trials(study._study_id)),
            ]
            for study in storage.get_all_studies()
        }
    finally:
        storage.remove_session()
        storage.engine.dispose()


def describe(trial: FrozenTrial) -> str:
    """Return the content of a trial, without its id."""
    parts = (
        (trial.number, trial.state.name, trial.values, trial.datetime_start, trial.datetime_complete),
        list(trial.params.items()),
        list(trial.distributions.items()),
        sorted(trial.intermediate_values.items()),
        sorted(trial.user_attrs.items()),
        sorted(trial.system_attrs.items()),
        sorted(trial.constraints.items()),
    )
    return repr(parts)
