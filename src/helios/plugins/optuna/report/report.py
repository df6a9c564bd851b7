"""`write_report`, which writes a study with plots as one HTML page."""

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
    """Write an HTML page about a study: a summary, plots, and a table of the trials.

    The plots are those of `optuna.visualization`: history, intermediate values with the pruned trials marked,
    importances, parallel coordinates, slices and timeline, and for several objectives the Pareto front. Where the study
    has no data for a plot, the page explains why. The page is a single file of about 5 MB and loads nothing from the
    network. The same study gives the same bytes, unless trials are running.

    Args:
        study_or_url: the study, or the URL of the RDB storage that holds it, as in "sqlite:///study.db".
        path: the file; an existing file is replaced atomically, and missing folders are created.
        study_name: the name of the study in the storage; not needed if the storage has a single study.

    Returns:
        The absolute path of the page.

    Raises:
        ImportError: if plotly is not installed; the message names the extra to install.
        ArgumentTypeError: if `study_or_url` is neither a study nor a string.
        ConfigurationError: if there is no such database, or no study in it, or several studies and no name.
        UnknownNameError: if the storage has no study of this name.
    """
    target = to_path(path)
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 - it takes 0.3 s, and only reports need it.
    except ImportError as error:
        raise ImportError(
            "write_report needs plotly, which is not installed: pip install 'helios-train[tune]'"
        ) from error
    from helios.plugins.optuna.report.figures import draw_sections  # noqa: PLC0415 - imports plotly.

    with quiet_optuna():
        with open_study(study_or_url, study_name) as study:
            snapshot = Snapshot.of(study)
        page = write_page(snapshot, draw_sections(snapshot), get_plotlyjs())
    # An unpaired surrogate in a name cannot be encoded: it is shown as a question mark.
    atomic_write(target, lambda file: file.write(page.encode(errors="replace")))
    return target
