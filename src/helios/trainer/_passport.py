"""Creates the passport of a run from its options, data, parts and machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helios.checkpoint.machine import describe_machine
from helios.checkpoint.passport import merge_ranks, to_entries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helios.trainer._evaluation import EvaluationLoop
    from helios.trainer._session import Session

_TRAIN: Final = ("kind", "length", "batch_size", "order", "drop_last", "workers")
_VALID: Final = ("length", "batch_size")


def make_passport(session: Session, data: Mapping[str, Any], validation: EvaluationLoop | None) -> dict[str, Any]:
    """Return the passport of a run; a collective.

    Args:
        session: the run, after its setup.
        data: the description of the training data.
        validation: the evaluation loop of validations; `None` if there is none.
    """
    options, ranks = session.options, session.host_group.world_size
    entries = {
        "seed": options.seed,
        "train_unit": options.train_unit.value,
        "accumulation_steps": options.accumulation_steps,
        **{f"train.{name}": data[name] for name in _TRAIN},
        "train.global_batch_size": data["batch_size"] and data["batch_size"] * (data["replicas"] or ranks),
        # None for the seed of the trainer, which already has an entry.
        "train.seed": None if data["seed"] == options.seed else data["seed"],
        **{f"valid.{name}": validation and validation.data[name] for name in _VALID},
        "ranks": ranks,
        "strategy": session.strategy.name if ranks > 1 else None,
        **describe_machine(session.device),
        **options.added_entries,
        **_collect_added(session),
    }
    return merge_ranks(session.host_group.all_gather_object(entries))


def _collect_added(session: Session) -> dict[str, Any]:
    """Return the entries of the parts of the run."""
    parts = {"model.": session.model, "datamodule.": session.datamodule}
    parts.update({f"plugins.{plug_id}.": plugin for plug_id, plugin in session.plugins.items()})
    return {
        name: value
        for prefix, part in parts.items()
        for name, value in to_entries(prefix, part.passport(), f"{type(part).__name__}.passport()").items()
    }
