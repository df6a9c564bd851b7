"""Saves checkpoints of a training: what is collected, the name, and what the end of training adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helios._version import __version__
from helios.checkpoint.format import FORMAT
from helios.checkpoint.names import CheckpointName
from helios.checkpoint.rank_deltas import digests_of, find_differences, with_sharded
from helios.checkpoint.state.digest import digest_of
from helios.errors import ConfigurationError
from helios.parallel.gradients import collect_gradients

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from helios.checkpoint.store import CheckpointStore
    from helios.core.state import TrainingState
    from helios.parallel.gradients import GradientWatch
    from helios.trainer._session import Session

_PARTS: Final = ("model", "plugins", "datamodule")


class Saver:
    """Saves a training in three steps: collect, on all ranks; snapshot, for background saves; commit, on rank 0.

    It refers neither to the loop, which passes its own state, nor to the job.
    """

    def __init__(
        self,
        session: Session,
        store: CheckpointStore,
        state: TrainingState,
        gradients: GradientWatch,
        passport: Mapping[str, Any],
    ) -> None:
        """Store the parts and the folder.

        Args:
            session: the parts of the run.
            store: the folder of checkpoints.
            state: the progress of training.
            gradients: knows which gradients need not be saved.
            passport: the passport, with which a resumed run is compared.
        """
        self._session = session
        self._host_group = session.host_group
        self._store = store
        self._state = state
        self._gradients = gradients
        self._passport = passport
        # The name of the last checkpoint of the training, and digests of its content.
        self._last_save: tuple[CheckpointName | None, dict[Any, bytes]] | None = None

    def save(self, training: dict[str, Any], *, is_last: bool) -> Path:
        """Save a checkpoint, and return its path; a collective.

        Args:
            training: the state of the loop.
            is_last: whether training has ended.
        """
        own = self._store.fit_name(self._name_checkpoint()) if self._host_group.rank == 0 else None
        name = self._host_group.broadcast_object(own)
        assert name is not None  # noqa: S101 - for the type checker: it is rank 0's.
        data = self.collect(training)
        pending = self._store.collect(name, data, self._host_group)
        path = self._store.commit(pending)
        self._last_save = (name, digests_of(states_in(data))) if is_last else None
        self._session.log.debug("saved %s", path)
        return path

    def collect(self, training: dict[str, Any]) -> dict[str, Any]:
        """Return the state of this rank that a resumed run needs, as plain data.

        Args:
            training: the state of the loop.
        """
        session = self._session
        with session.states.graph.together():
            used = self._gradients.find_used()
            return {
                "format": FORMAT,
                "helios": __version__,
                "passport": dict(self._passport),
                **session.states.collect(),
                "training": training,
                "gradients": collect_gradients(session.model, used, session.states.others),
            }

    def check_name(self) -> None:
        """Refuse names that are too long, before training."""
        name = CheckpointName(self._session.model.save_name, 0, 0)
        self._store.check_name(name)
        try:
            name = self._name_checkpoint()
        except ConfigurationError:
            raise
        except Exception:  # noqa: BLE001 - the name may contain a value, such as a score, that does not exist yet.
            return
        self._store.check_name(name)

    def _name_checkpoint(self) -> CheckpointName:
        model, state = self._session.model, self._state
        name = CheckpointName(model.save_name, state.global_epoch, state.current_iteration)
        return name.with_stem(model.append_metadata_to_chkpt_name(name.stem), type(model).__name__)

    def record_end(self) -> None:
        """Add the changes of the hooks at the end of training to the last checkpoint, for `test`.

        A run with more steps continues from the state before these hooks.
        """
        ended = self._session.states.collect()
        newest = None
        if self._last_save is None:  # A finished run that was started again.
            newest = self._store.load_newest(self._host_group, self._session.mesh)
            assert newest is not None  # noqa: S101 - for the type checker: what it was resumed from.
            self._last_save = (
                CheckpointName.parse(newest[0].name, self._session.model.save_name),
                digests_of(states_in(newest[1])),
            )
        name, digests = self._last_save
        changes = with_sharded(find_differences(ended, digests), ended, self._host_group)
        before = [] if newest is None else newest[1].get("ended", [])
        if not any(self._host_group.all_gather_object(digest_of(changes) != digest_of(before))):
            return
        _, data = newest or self._store.load_newest(self._host_group, self._session.mesh) or (None, {})
        assert name is not None  # noqa: S101 - for the type checker: it is that of a checkpoint.
        self._store.save(name, {**data, "ended": changes}, self._host_group)


def states_in(data: dict[str, Any]) -> dict[str, Any]:
    """Return the states of the model, the plug-ins and the data module in a checkpoint."""
    return {part: data[part] for part in _PARTS}
