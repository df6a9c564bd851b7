"""Asking a pruner a question again with the same answer, after a process was killed or a run was repeated.

Some pruners write a system attribute when they are asked: successive halving, and therefore Hyperband, record that the
trial has completed a rung. Asked again about the same report, they would assume that the trial is at the next rung.
"""

from __future__ import annotations

from typing import Any, Final

import optuna
from optuna import pruners

from helios.plugins.optuna.optuna_internals import trial_id_of
from helios.plugins.optuna.storage.owners import OWNER_KEY
from helios.plugins.optuna.storage.rdb import delete_system_attrs

_QUESTION_KEY: Final = "helios:question"
# These pruners decide from the reported values only, and write nothing.
_STATELESS: Final = (
    pruners.MedianPruner,
    pruners.NopPruner,
    pruners.PercentilePruner,
    pruners.ThresholdPruner,
    pruners.WilcoxonPruner,
)


def ask_pruner(trial: Any, step: int) -> bool:
    """Return whether a trial should be pruned, given its reports up to this step.

    If the pruner was asked about the same step before, the attributes that it wrote then are deleted first. That needs
    a relational database; in other storages they remain.
    """
    if isinstance(trial, optuna.Trial) and not isinstance(trial.study.pruner, _STATELESS):
        _delete_earlier_answer(trial, step)
    return bool(trial.should_prune())


def _delete_earlier_answer(trial: optuna.Trial, step: int) -> None:
    trial_id = trial_id_of(trial)
    attrs = trial.storage.get_trial(trial_id).system_attrs
    question = attrs.get(_QUESTION_KEY)
    if isinstance(question, dict) and question.get("step") == step:
        kept = {*question["notes"], _QUESTION_KEY, OWNER_KEY}  # "notes" are the attributes before the first question.
        delete_system_attrs(trial.storage, trial_id, [name for name in attrs if name not in kept])
    else:
        trial.storage.set_trial_system_attr(trial_id, _QUESTION_KEY, {"step": step, "notes": sorted(attrs)})
