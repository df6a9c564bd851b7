"""Asking a pruner, so that a question that was cut short can be asked again and gets the same answer.

Some pruners leave a note on the trial when they are asked: successive halving, and so Hyperband, that it has completed
a rung. Asked again about the same report they would take the note for an earlier question's, and answer another one.
"""

from __future__ import annotations

from typing import Any, Final

import optuna
from optuna import pruners

from helios.plugins.optuna.storage.owners import OWNER_KEY
from helios.plugins.optuna.storage.rdb import forget_notes

_QUESTION: Final = "helios:question"
# These answer from what was reported, and leave nothing behind.
_WITHOUT_NOTES: Final = (
    pruners.MedianPruner,
    pruners.NopPruner,
    pruners.PercentilePruner,
    pruners.ThresholdPruner,
    pruners.WilcoxonPruner,
)


def ask_pruner(trial: Any, step: int) -> bool:
    """Return whether a trial shall be pruned, as of the report at this step.

    What the pruner noted on the trial when it was asked about the same step before, in a process that was killed or for
    a run that was pruned, is forgotten first. That takes a relational database; in other storages the notes stay.
    """
    if isinstance(trial, optuna.Trial) and not isinstance(trial.study.pruner, _WITHOUT_NOTES):
        _prepare(trial, step)
    return bool(trial.should_prune())


def _prepare(trial: optuna.Trial, step: int) -> None:
    trial_id = trial._trial_id  # noqa: SLF001 - storages know ids alone.
    notes = trial.storage.get_trial(trial_id).system_attrs
    question = notes.get(_QUESTION)
    if isinstance(question, dict) and question.get("step") == step:
        kept = {*question["notes"], _QUESTION, OWNER_KEY}
        forget_notes(trial.storage, trial_id, [name for name in notes if name not in kept])
    else:
        trial.storage.set_trial_system_attr(trial_id, _QUESTION, {"step": step, "notes": sorted(notes)})
