"""Where a run writes its TensorBoard files."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def choose_run_dir(folder: Path, save_name: str, *, is_new: bool) -> Path:
    """Return the directory of TensorBoard's files for one start of a model: `<folder>/<save_name>_<number>`.

    Args:
        folder: the directory of the run.
        save_name: the save name of the model.
        is_new: whether training starts anew, with the next free number. Otherwise the directory is that of the last
            start, so that the curves of a resumed run continue.
    """
    try:
        names = [path.name.removeprefix(f"{save_name}_") for path in folder.glob(f"{glob.escape(save_name)}_*")]
    except OSError:  # It is reported when the writer is opened.
        names = []
    last = max((int(name) for name in names if name.isdecimal()), default=-1)
    return folder / f"{save_name}_{max(0, last + is_new)}"
