"""The passport of a checkpoint: what a run must keep equal, so that a resumed run is the same run.

A passport is a flat dictionary of plain values. On resume, that of the checkpoint is compared with that of the run. An
entry that differs, a *drift*, either makes this another run than the one that was interrupted, or only ends the promise
that it ends with the same bits.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from helios.errors import ArgumentTypeError, CheckpointMismatchError, ConfigurationError

if TYPE_CHECKING:
    import logging
    from collections.abc import Sequence
    from pathlib import Path

REFUSE: Final = "refuse"
WARN: Final = "warn"
IGNORE: Final = "ignore"
STRICT: Final = "strict"

# Each makes another run, and where it is set.
_OTHER_RUN: Final = (
    *("seed", "train_unit", "accumulation_steps", "default_dtype"),
    *("train.kind", "train.length", "train.batch_size", "train.order", "train.drop_last", "train.seed"),
    "valid.length",
)
# Each ends bit-equality only.
_NOT_EXACT: Final = (
    *("ranks", "strategy", "train.global_batch_size", "train.workers", "valid.batch_size"),
    *("float32_precision", "deterministic", "cudnn", "device", "threads"),
    *("helios", "torch", "numpy", "python"),
)
# What users add, to the trainer or to a part of the run; it makes another run.
_ADDED: Final = ("trainer.", "model.", "datamodule.", "plugins.")
# Entries that are `None` where they do not apply, in a run without validation for example, and are not compared then.
_MAY_NOT_APPLY: Final = ("strategy", "valid.length", "valid.batch_size", "train.workers", "cudnn")


@dataclasses.dataclass(frozen=True)
class Drift:
    """An entry that is not what it was.

    Attributes:
        name: the entry.
        before: its value in the checkpoint.
        now: its value in this run.
        is_other_run: whether it makes this another run.
    """

    name: str
    before: Any
    now: Any
    is_other_run: bool

    def __str__(self) -> str:
        """Return the name and both values."""
        return f"{self.name} was {self.before!r} and is {self.now!r}"


def to_plain(name: str, value: Any) -> Any:
    """Return a value as a passport has it: tuples as lists, and subclasses of plain types as these.

    Raises:
        ArgumentTypeError: if it is not plain.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentTypeError(
            f"the passport entry {name!r} is {value!r} ({error}): give a number, a string, a boolean, None, or a list "
            "or dictionary of such"
        ) from error


def to_entries(prefix: str, entries: Any, owner: str) -> dict[str, Any]:
    """Return the entries that a user has added, each under a prefix of its own.

    Args:
        prefix: is put before each name.
        entries: what the user has given.
        owner: what has given it, for messages.

    Raises:
        ArgumentTypeError: if it is no mapping of names to plain values.
    """
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise ArgumentTypeError(f"{owner} is {entries!r}: give a dictionary of names and plain values")
    return {f"{prefix}{name}": to_plain(f"{prefix}{name}", value) for name, value in entries.items()}


def merge_ranks(passports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the passport of a run of several ranks: what differs between them is a list, in order of rank."""
    merged = {}
    for name in dict.fromkeys(name for passport in passports for name in passport):
        values = [passport.get(name) for passport in passports]
        is_common = all(_is_same(value, values[0]) for value in values)
        merged[name] = values[0] if is_common else values
    return merged


def find_drift(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[Drift]:
    """Return the entries of both passports that differ."""
    return [
        Drift(name, saved[name], now, _is_other_run(name))
        for name, now in current.items()
        if name in saved and not _is_same(saved[name], now) and _is_compared(name, saved, current)
    ]


def _is_other_run(name: str) -> bool:
    return name in _OTHER_RUN or name.startswith(_ADDED)


def _is_compared(name: str, saved: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    if name in _MAY_NOT_APPLY:
        return saved[name] is not None and current[name] is not None
    if name == "train.batch_size":  # Other numbers of ranks share the same batches out differently.
        return not _is_same(saved.get("train.global_batch_size"), current.get("train.global_batch_size"))
    if name == "train.global_batch_size":  # Told of once: by what was changed.
        return _is_same(saved.get("train.batch_size"), current.get("train.batch_size"))
    return True


def _is_same(left: Any, right: Any) -> bool:
    return _canonical(left) == _canonical(right)


def _canonical(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True)  # NaN is NaN there.
    except (TypeError, ValueError, RecursionError):
        return repr(value)  # No passport of ours has such a value.


class DriftPolicy:
    """What is done about drift: the argument `on_drift` of a trainer.

    Args:
        on_drift: "refuse" refuses what makes another run, and warns of the rest; "strict" refuses everything; "warn"
            warns of everything; "ignore" does nothing. A mapping of entries to "refuse", "warn" or "ignore" decides
            for these, and "refuse" for the others.
        added: the names that the trainer's own passport adds.

    Raises:
        ConfigurationError: if a value or a name is unknown.
        ArgumentTypeError: if it is neither a string nor a mapping.
    """

    def __init__(self, on_drift: Any, added: Mapping[str, Any]) -> None:
        self._default = on_drift if isinstance(on_drift, str) else REFUSE
        self._by_name: Mapping[str, Any] = on_drift if isinstance(on_drift, Mapping) else {}
        if not isinstance(on_drift, str | Mapping):
            raise ArgumentTypeError(
                f"on_drift is {on_drift!r}, a {type(on_drift).__name__}: pass 'refuse', 'strict', 'warn', 'ignore', or "
                "a mapping of entries of the passport to 'refuse', 'warn' or 'ignore'"
            )
        if self._default not in (REFUSE, STRICT, WARN, IGNORE):
            raise ConfigurationError(f"on_drift is {on_drift!r}: choose one of 'refuse', 'strict', 'warn', 'ignore'")
        known = [*_OTHER_RUN, *_NOT_EXACT, *added]
        for name, verdict in self._by_name.items():
            if name not in known and not str(name).startswith(_ADDED[1:]):
                raise ConfigurationError(
                    f"on_drift has {name!r}, which is no entry of the passport: there are {', '.join(known)}, and "
                    "those that begin with 'model.', 'datamodule.' or 'plugins.'"
                )
            if verdict not in (REFUSE, WARN, IGNORE):
                raise ConfigurationError(f"on_drift[{name!r}] is {verdict!r}: choose one of 'refuse', 'warn', 'ignore'")

    def judge(self, name: str) -> str:
        """Return "refuse", "warn" or "ignore" for drift of an entry."""
        if name in self._by_name:
            return str(self._by_name[name])
        if self._default == REFUSE:
            return REFUSE if _is_other_run(name) else WARN
        return REFUSE if self._default == STRICT else self._default


def check_passport(
    path: Path, saved: Any, current: Mapping[str, Any], policy: DriftPolicy, log: logging.Logger
) -> None:
    """Compare a checkpoint's passport with that of the run that is about to resume it.

    Args:
        path: the checkpoint.
        saved: its passport; `None` if it has none.
        current: that of the run.
        policy: what is done about drift.
        log: is told of what is not refused.

    Raises:
        CheckpointMismatchError: if drift is refused.
    """
    if not isinstance(saved, Mapping):
        log.info(
            "%s has no passport, as an earlier version wrote it: whether this is the same run is not checked", path
        )
        return
    drifts = find_drift(saved, current)
    refused = [drift for drift in drifts if policy.judge(drift.name) == REFUSE]
    if refused:
        accept = ", ".join(f"{drift.name!r}: 'warn'" for drift in refused)
        raise CheckpointMismatchError(
            f"{path} belongs to another run than this one: {_join(refused)}. Resume with the values of the checkpoint; "
            "or begin another run, with another save_name or chkpt_root; or accept the difference, with "
            f"Trainer(on_drift={{{accept}}})"
        )
    said = [drift for drift in drifts if policy.judge(drift.name) == WARN]
    if said:
        log.warning(
            "this run differs from that of %s, and need not end with the bits of the uninterrupted one: %s",
            path,
            _join(said),
        )
    unknown = {name: "the checkpoint" for name in saved if name not in current}
    unknown.update({name: "this run" for name in current if name not in saved})
    one_sided = [f"{name} (only in {side})" for name, side in unknown.items() if policy.judge(name) != IGNORE]
    if one_sided:
        log.warning("not compared when %s was resumed: %s", path, ", ".join(one_sided))


def _join(drifts: Sequence[Drift]) -> str:
    return "; ".join(map(str, drifts))
