"""Every block of Python in the README and the docs runs, and prints what the page says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from helios.plugins import PLUGIN_REGISTRY, CUDAPlugin, DevicePlugin
from tests.docs.snippets import PAGES, ROOT, Snippet, blocks, find_snippets, run_snippet

if TYPE_CHECKING:
    from pathlib import Path

    from tests.gpu.driver import Driver

WITH_CODE = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


def test_blocks_are_found_with_what_they_print() -> None:
    """Only a text block that follows at once is taken for the output; a snippet knows its line."""
    page = "a\n```python\nprint(1)\n```\n\n```text\n1\n```\n```python\npass\n```\nb\n```text\nc\n```\n"
    assert find_snippets(page) == [Snippet("print(1)\n", 2, "1\n"), Snippet("pass\n", 9, None)]


def test_a_snippet_that_fails_or_prints_something_else_is_noticed(tmp_path: Path) -> None:
    """An exception in a snippet comes out, and what it prints is returned."""
    assert run_snippet(Snippet("print(1)\n", 0, "2\n"), tmp_path / "page.md", {}) == "1\n"
    with pytest.raises(ZeroDivisionError):
        run_snippet(Snippet("1 / 0\n", 0, None), tmp_path / "page.md", {})


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README and docs are executed; where a page says what a snippet prints, that is its last output."""
    monkeypatch.chdir(tmp_path)
    # Neither what other tests have registered is seen by a page, nor what a page registers by other tests.
    registered = {kind.__name__: kind for kind in (CUDAPlugin, DevicePlugin)}
    monkeypatch.setattr(PLUGIN_REGISTRY, "_entries", registered)
    # The script of the README runs as one. The guarded snippets of other pages start processes: other tests run them.
    namespace: dict[str, Any] = {"__name__": "__main__" if page.stem == "README" else "page"}
    for snippet in find_snippets(page.read_text(encoding="utf-8")):
        printed = run_snippet(snippet, page, namespace)
        if snippet.output is not None:
            assert printed.endswith(snippet.output), f"{page.name}:{snippet.line}"


def test_the_example_in_the_readme_trains_on_a_gpu(
    cuda: Driver | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with one GPU, the script, with less to train, runs as it is, and trains there."""
    del cuda
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.chdir(tmp_path)
    (example,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    for lesser in (("4000", "400"), ("total_steps=20", "total_steps=2")):
        example = example.replace(*lesser)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    run_snippet(Snippet(example, 0, None), tmp_path / "page.md", namespace)
    assert {weight.device for weight in namespace["model"].network.parameters()} == {torch.device("cuda", 0)}
    assert 0 < namespace["model"].metrics["accuracy"] <= 1


def test_the_example_in_the_readme_has_forty_lines() -> None:
    """What a newcomer can paste is no longer than 40 lines."""
    (example,) = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    assert len(example.splitlines()) <= 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link leads to a file that exists, and its anchor to a heading there."""
    text = page.read_text(encoding="utf-8")
    for target in _links(text):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = [line.lstrip("#").strip() for line in file.read_text("utf-8").splitlines() if line[:1] == "#"]
            assert anchor in [heading.lower().replace(" ", "-").replace(",", "") for heading in headings], target


def _links(text: str) -> list[str]:
    parts = [part.split(")")[0] for part in text.split("](")[1:]]
    return [part for part in parts if "://" not in part]
