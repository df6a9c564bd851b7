"""Finding a checkpoint of a model, and reading the state of the model from it, without a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios.checkpoint.archive import load_archive
from helios.checkpoint.shard_files import fill_shards, load_sharded_plain
from helios.checkpoint.state.states import decode_state
from helios.checkpoint.store import CheckpointStore
from helios.core.paths import to_path
from helios.errors import CorruptCheckpointError

if TYPE_CHECKING:
    from pathlib import Path


def find_last_checkpoint(root: Path | str | None) -> Path | None:
    """Return the newest intact checkpoint in a folder, by the counts in its name.

    Args:
        root: the folder `<chkpt_root>/<save_name>`, or one of another name that has the checkpoints of one model in it;
            `None` for none.

    Returns:
        The path; `None` if the folder has no intact checkpoint, or does not exist.

    Raises:
        ArgumentTypeError: if `root` is no path.
        ConfigurationError: if no folder can have this path.
        CheckpointError: if the folder cannot be read.
    """
    if root is None:
        return None
    folder = to_path(root, "root")
    store = CheckpointStore(folder.parent, folder.name)
    if not store.has_any():
        store = CheckpointStore(folder.parent, folder.name, of_any_name=True)
    return store.find_newest()


def load_model_state(path: Path | str) -> dict[str, Any]:
    """Return the state of the model in a checkpoint: what `Model.state_dict` returned when it was saved.

    For a model that does not override `state_dict`, the states of its networks and optimizers are there by the names of
    their attributes, so that `network.load_state_dict(load_model_state(path)["network"])` loads a network. Nothing in
    the file is run. What else such a model has is in the form in which a checkpoint keeps it.

    Args:
        path: the checkpoint, as `find_last_checkpoint` returns it.

    Returns:
        The state, with all tensors whole and on the CPU.

    Raises:
        ArgumentTypeError: if `path` is no path.
        CorruptCheckpointError: if this is no checkpoint of Helios, or its bytes have changed.
        OSError: if it cannot be read.
    """
    place = to_path(path, "path")
    data = fill_shards(load_sharded_plain(place), place, None) if place.is_dir() else load_archive(place)
    try:
        model = data["model"]
        state = decode_state(model["state"], model["class"]) if model["encoded"] else model["state"]
    except (KeyError, TypeError) as error:
        raise CorruptCheckpointError(f"{place.name} has no state of a model ({error}): it is no checkpoint") from error
    return dict(state)
