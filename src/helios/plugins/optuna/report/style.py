"""The style of the report's figures: colours, fonts and layout."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from optuna.trial import TrialState

from helios.plugins.optuna.report.snapshot import STATE_NAMES

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

COLOURS: Final = {
    TrialState.COMPLETE: "#3b76d6",
    TrialState.PRUNED: "#e08e2b",
    TrialState.FAIL: "#d64545",
    TrialState.RUNNING: "#2f9e6e",
    TrialState.WAITING: "#94a3b8",
}
BEST_COLOUR: Final = "#0f172a"
LEGEND_ABOVE: Final = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left", "title": None}
_FONT: Final = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif", "size": 13}
_REMOVED_BUTTONS: Final = ["select2d", "lasso2d", "autoScale2d"]


def style_figure(figure: Any, top: int = 12) -> Any:
    """Apply the report's layout to a plotly figure, and return the figure.

    Args:
        figure: the figure.
        top: its upper margin in pixels if it has no legend above it.
    """
    figure.update_layout(
        template="plotly_white",
        title=None,
        width=None,
        autosize=True,
        font={**_FONT, "color": "#334155"},
        margin={"l": 60, "r": 20, "t": top if figure.layout.legend.orientation is None else 36, "b": 50},
        hoverlabel={"font": {"size": 12}, "align": "left"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={
            "bgcolor": "rgba(255,255,255,0)",
            "color": "#94a3b8",
            "activecolor": BEST_COLOUR,
            "remove": _REMOVED_BUTTONS,
        },
    )
    figure.update_xaxes(automargin=True, exponentformat="e")
    figure.update_yaxes(automargin=True, exponentformat="e")
    figure.update_xaxes(dtick=1, selector={"type": "log"})  # One label for each power of ten.
    return figure


def style_line(line: Any, trial: FrozenTrial, *, is_best: bool) -> None:
    """Apply the colour of a trial's state to the line of its intermediate values, and mark where it was pruned."""
    colour = BEST_COLOUR if is_best else COLOURS[trial.state]
    sizes = [0.0] * len(line.y)
    finite = [i for i, value in enumerate(line.y) if math.isfinite(value)]
    if finite and (trial.state is TrialState.PRUNED or len(finite) == 1):
        sizes[finite[-1]] = 9.0
    line.update(
        name="best" if is_best else STATE_NAMES[trial.state],
        legendgroup="best" if is_best else trial.state.name,
        line={"color": colour, "width": 3 if is_best else 1.4},
        opacity=1 if is_best else 0.65,
        marker={
            "symbol": "x" if trial.state is TrialState.PRUNED else "circle",
            "size": sizes,
            "color": colour,
            "maxdisplayed": 0,
            "line": {"width": 0},
        },
        hovertemplate=f"trial {trial.number}, {STATE_NAMES[trial.state]}<br>step %{{x}}: %{{y:.6g}}<extra></extra>",
    )


def darken(colour: str) -> str:
    """Return a darker colour: the lightest blue of Optuna's figures is invisible on white."""
    channels = [round(0.82 * float(channel)) for channel in re.findall(r"[\d.]+", colour)]
    return f"rgb({', '.join(map(str, channels))})"
