"""The names of checkpoints."""

from __future__ import annotations

import dataclasses
import re
from typing import Final

from helios.core.paths import can_be_in_name
from helios.errors import ConfigurationError

SUFFIX: Final = ".pth"
_COUNTS: Final = re.compile(
    r"_epoch_(?P<epoch>[0-9]+)_iter_(?P<iteration>[0-9]+)(?P<metadata>(?:[^0-9].*)?)", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class CheckpointName:
    """The name of a checkpoint: `str` writes it, and `parse` is the inverse.

    Attributes:
        save_name: the model's save name.
        epoch: epochs started.
        iteration: iterations done.
        metadata: what the model has added; it does not begin with a digit.
    """

    save_name: str
    epoch: int
    iteration: int
    metadata: str = ""

    def __str__(self) -> str:
        """Return the name of the file."""
        return f"{self.save_name}_epoch_{self.epoch}_iter_{self.iteration}{self.metadata}{SUFFIX}"

    @classmethod
    def parse(cls, file_name: str, save_name: str | None) -> CheckpointName | None:
        """Return what a file's name says; `None` if it is no checkpoint of this model.

        Args:
            file_name: the name of the file.
            save_name: the save name of the model, which may itself contain "_epoch_1_iter_1". `None` for any save name,
                which is then what is before the last "_epoch_".
        """
        if save_name is None:
            save_name = file_name[: max(file_name.rfind("_epoch_"), 0)]
        if not (file_name.startswith(save_name) and file_name.endswith(SUFFIX)):
            return None
        match = _COUNTS.fullmatch(file_name[len(save_name) : -len(SUFFIX)])
        if match is None:
            return None
        return cls(save_name, int(match["epoch"]), int(match["iteration"]), match["metadata"])

    @property
    def stem(self) -> str:
        """The name without the suffix."""
        return str(self)[: -len(SUFFIX)]

    def with_stem(self, stem: object, owner: str) -> CheckpointName:
        """Return this name with the metadata that a model has added to the stem.

        Raises:
            ConfigurationError: if the model has changed what it should only add to.
        """
        added = stem[len(self.stem) :] if isinstance(stem, str) and stem.startswith(self.stem) else None
        if added is None or added[:1].isdigit() or not can_be_in_name(added):
            raise ConfigurationError(
                f"{owner}.append_metadata_to_chkpt_name made {stem!r} of {self.stem!r}: it may add text at the end "
                "that does not begin with a digit and has no '/' or '\\'; return chkpt_name + '_acc_0.9', say",
            )
        return dataclasses.replace(self, metadata=added)
