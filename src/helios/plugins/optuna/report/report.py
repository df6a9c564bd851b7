"""A study as pictures: one HTML page that opens without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helios.checkpoint.files import atomic_write
from helios.core.paths import to_path
from helios.plugins.optuna.report.page import write_page
from helios.plugins.optuna.report.snapshot import Snapshot, open_study, quiet_optuna

if TYPE_CHECKING:
    from pathlib import Path

    import optuna


def write_report(study_or_url: optuna.Study | str, path: str | Path, *, study_name: str | None = None) -> Path:
    """Write a page that shows a study: its facts, its trials, and pictures of both.

    The pictures are those of `optuna.visualization`: history, intermediate values with the pruned trials marked,
    importances, parallel coordinates, slices and timeline, with several objectives the Pareto front as well. Where the
    study has nothing to draw, however little it holds, the page says so. It is one file, of about 5 MB, which fetches
    nothing; one study gives one page, to the byte, unless trials are running.

    Args:
        study_or_url: the study, or the URL of the RDB storage that holds it, as in "sqlite:///study.db".
        path: where to; an old page is replaced as a whole, and missing folders are made.
        study_name: which of the storage's studies; not needed if there is one alone.

    Returns:
        The absolute path of the page.

    Raises:
        ImportError: if plotly is not installed; the message names the extra to install.
        ArgumentTypeError: if `study_or_url` is neither a study nor a string.
        ConfigurationError: if there is no such database, or no study in it, or several and no name is given.
        UnknownNameError: if the storage has no study of this name.
    """
    target = to_path(path)
    try:
        # Only here: it takes a third of a second, and who does not ask for a report does not need it.
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - as said above.
    except ImportError as error:
        raise ImportError(
            "write_report needs plotly, which is not installed: pip install 'helios-train[tune]'"
        ) from error
    from helios.plugins.optuna.report.figures import draw_sections  # noqa: PLC0415 - imports plotly.

    with quiet_optuna():
        with open_study(study_or_url, study_name) as study:
            snapshot = Snapshot.of(study)
        page = write_page(snapshot, draw_sections(snapshot), get_plotlyjs())
    # A name may hold half of a surrogate pair, which is no character: a question mark is shown in its place.
    atomic_write(target, lambda file: file.write(page.encode(errors="replace")))
    return target
