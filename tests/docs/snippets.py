"""The code blocks of a Markdown page."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A block of Python and the text block that follows it at once, if one does: what it prints at its end."""

    code: str
    line: int
    output: str | None


def blocks(page: str, language: str) -> list[str]:
    """Return the texts of all blocks of a language."""
    return [match["text"] for match in _BLOCK.finditer(page) if match["language"] == language]


def find_snippets(page: str) -> list[Snippet]:
    """Return the Python blocks of a page."""
    matches = list(_BLOCK.finditer(page))
    snippets = []
    for i, match in enumerate(matches):
        if match["language"] == "python":
            following = matches[i + 1] if i + 1 < len(matches) else None
            gap = page[match.end() : following.start()].strip() if following else ""
            is_output = following is not None and following["language"] == "text" and gap in ("", "It prints")
            output = following["text"] if following is not None and is_output else None
            snippets.append(Snippet(match["text"], page.count("\n", 0, match.start("text")), output))
    return snippets


def run_snippet(snippet: Snippet, file: Path, namespace: dict[str, Any]) -> str:
    """Run a snippet, with the line numbers of its page, and return what it printed."""
    code = compile("\n" * snippet.line + snippet.code, str(file), "exec", dont_inherit=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, namespace)  # noqa: S102 - running our own documentation is the point.
    return printed.getvalue()
