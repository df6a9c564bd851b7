"""How every benchmark reports what it measured."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Table:
    """What one benchmark measured, as text.

    Attributes:
        title: what was measured.
        header: the names of the columns.
        rows: the cells, as many in each row as there are columns.
        notes: lines to print below.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def render(self) -> str:
        """Return the table as lines of text: the first column flush left, the others flush right."""
        cells = (self.header, *self.rows)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip() for row in cells]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join((self.title, "=" * len(self.title), *lines, *self.notes))
