"""The plots of a study: Optuna's figures in the report's style, or a note where there is nothing to plot."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Final

from optuna import visualization
from optuna.trial import TrialState

from helios.plugins.optuna.report.snapshot import STATE_NAMES, as_label, is_finite
from helios.plugins.optuna.report.style import (
    BEST_COLOUR,
    COLOURS,
    LEGEND_ABOVE,
    darken,
    style_figure,
    style_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helios.plugins.optuna.report.snapshot import Snapshot

# Some plots have a line for each trial; with more lines they are slow in a browser and unreadable.
MAX_LINES: Final = 300

_FLAT: Final = 2
_SPATIAL: Final = 3


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure with its size and caption.

    Args:
        figure: a plotly figure.
        height: in pixels.
        caption: the line above it.
        is_small: whether several plots are shown side by side.
        min_width: in pixels; on a narrower page the figure is scrolled horizontally.
    """

    figure: Any
    height: int = 380
    caption: str = ""
    is_small: bool = False
    min_width: int = 0


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: its heading.
        explanation: one line that explains the plots.
        plots: the plots.
        note: a text on what is not plotted, and why.
    """

    title: str
    explanation: str
    plots: Sequence[Plot]
    note: str


Drawing = tuple[list[Plot], str]


def draw_sections(snapshot: Snapshot) -> list[Section]:
    """Return the sections of the report with plots, in the order of the page."""
    drawings = ((title, explanation, _draw(draw, snapshot)) for title, explanation, draw in _SECTIONS)
    return [Section(title, explanation, *drawing) for title, explanation, drawing in drawings if drawing is not None]


def _draw(draw: Callable[[Snapshot], Drawing | None], snapshot: Snapshot) -> Drawing | None:
    try:
        return draw(snapshot)
    except Exception as error:  # noqa: BLE001 - the other plots are still drawn, and the page shows the reason.
        reason = " ".join(str(error).split())[:200]
        return [], f"This plot could not be created: {type(error).__name__}: {reason}"


# ------------------------------------------------------------------------------------------------------------- plots


def _draw_history(snapshot: Snapshot) -> Drawing:
    if not snapshot.finite_trials:
        return [], snapshot.explain_no_values()
    plots = []
    for objective, name in enumerate(snapshot.objectives):
        figure = visualization.plot_optimization_history(snapshot.as_study(objective), target_name=as_label(name))
        values, best, *_ = figure.data
        values.update(name="complete trial", marker={"size": 8, "color": COLOURS[TrialState.COMPLETE], "opacity": 0.8})
        best.update(name="best so far", line={"width": 2, "color": BEST_COLOUR, "shape": "hv"})
        figure.update_layout(xaxis={"title": "trial"}, legend=LEGEND_ABOVE)
        plots.append(Plot(style_figure(figure), caption=_caption(snapshot, objective)))
    left_out = [str(trial.number) for trial in snapshot.with_state(TrialState.COMPLETE) if not is_finite(trial)]
    return plots, f"Not plotted, because a value is not finite: trial {', '.join(left_out)}." if left_out else ""


def _draw_front(snapshot: Snapshot) -> Drawing | None:
    count = len(snapshot.objectives)
    if count == 1:
        return None
    if not snapshot.finite_trials:
        return [], snapshot.explain_no_values()
    if count not in (_FLAT, _SPATIAL):
        return [], f"A front of {count} objectives cannot be plotted: the table marks its trials."
    names = [as_label(name) for name in snapshot.objectives]
    figure = visualization.plot_pareto_front(snapshot.as_study(), target_names=names)
    colours = ["#cccccc", COLOURS[TrialState.COMPLETE], BEST_COLOUR][-len(figure.data) :]
    for points, colour in zip(figure.data, colours, strict=True):
        points.marker = {"size": 9 if count == _FLAT else 5, "color": colour, "opacity": 0.85}
    figure.data[-2].update(name="other trial", showlegend=True)
    figure.data[-1].update(name="on the front", showlegend=True)
    camera = {"eye": {"x": 1.7, "y": 1.7, "z": 1.1}}
    figure.update_layout(legend=LEGEND_ABOVE, **({"scene_camera": camera} if count == _SPATIAL else {}))
    return [Plot(style_figure(figure), height=480)], ""


def _draw_intermediate_values(snapshot: Snapshot) -> Drawing | None:
    if len(snapshot.objectives) > 1:
        return None  # In Optuna, trials with several objectives have no intermediate values.
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    reporting = [trial for trial in snapshot.with_state(*states) if trial.intermediate_values]
    if not reporting:
        return [], "No trial has reported an intermediate value. Without them no pruner can stop a trial early."
    shown = reporting[-MAX_LINES:]
    figure = visualization.plot_intermediate_values(dataclasses.replace(snapshot, trials=shown).as_study(finite=False))
    seen: set[str] = set()
    for line, trial in zip(figure.data, shown, strict=True):
        style_line(line, trial, is_best=trial in snapshot.best_trials)
        line.showlegend = line.name not in seen
        seen.add(line.name)
    figure.data = sorted(figure.data, key=lambda line: (line.line.width, line.legendgroup == TrialState.PRUNED.name))
    figure.update_layout(
        xaxis={"title": "step"},
        yaxis={"title": as_label(snapshot.objectives[0])},
        legend=LEGEND_ABOVE,
        showlegend=True,
    )
    note = f"The last {MAX_LINES} of {len(reporting)} trials are plotted. " if len(shown) < len(reporting) else ""
    odd = sum(not math.isfinite(value) for trial in shown for value in trial.intermediate_values.values())
    note += f"A line has a gap where a reported value is NaN or infinite: {odd} values." if odd else ""
    return [Plot(style_figure(figure), height=420)], note.strip()


def _draw_importances(snapshot: Snapshot) -> Drawing:
    if missing := _explain_no_parameters(snapshot):
        return [], missing
    if len(snapshot.finite_trials) == 1:
        return [], "Importance needs two complete trials, and is only meaningful with a few dozen."
    plots = []
    for objective in range(len(snapshot.objectives)):
        # Optuna's default evaluator, PED-ANOVA, is deterministic; sorted parameters also fix the order of equal ones.
        figure = visualization.plot_param_importances(snapshot.as_study(objective), params=sorted(_labels(snapshot)))
        figure.update_traces(marker={"color": COLOURS[TrialState.COMPLETE]}, textfont={"size": 13})
        figure.update_layout(bargap=0.35, xaxis={"title": "importance", "range": [0, 1.12]}, yaxis={"title": None})
        height = 120 + 34 * len(snapshot.parameters)
        plots.append(Plot(style_figure(figure), height, caption=_caption(snapshot, objective)))
    note = f"Estimated from {len(snapshot.finite_trials)} complete trials."
    return plots, note + (" There is only one parameter." if len(snapshot.parameters) == 1 else "")


def _draw_parallel_coordinates(snapshot: Snapshot) -> Drawing:
    if missing := _explain_no_parameters(snapshot):
        return [], missing
    name = snapshot.objectives[0]
    figure = visualization.plot_parallel_coordinate(snapshot.as_study(max_trials=MAX_LINES), target_name=as_label(name))
    for line in figure.select_traces(selector={"mode": "lines"}):
        line.update(opacity=0.75, line={"color": darken(line.line.color)})
    scale = figure.data[-1].marker
    scale.colorscale = [(place, darken(colour)) for place, colour in scale.colorscale]
    count = len(snapshot.finite_trials)
    note = f"The {MAX_LINES} best of {count} complete trials, by {name}, are plotted." if count > MAX_LINES else ""
    axes = len(snapshot.objectives) + len(snapshot.parameters)
    return [Plot(style_figure(figure, top=30), height=440, min_width=180 + 110 * axes)], note


def _draw_slices(snapshot: Snapshot) -> Drawing:
    if missing := _explain_no_parameters(snapshot):
        return [], missing
    plots = []
    for objective, name in enumerate(snapshot.objectives):
        study = snapshot.as_study(objective)
        for label in _labels(snapshot):
            figure = visualization.plot_slice(study, params=[label], target_name=as_label(name))
            # The colour scale starts below 0, so that the earliest trials are not white.
            last = max(len(snapshot.trials) - 1, 1)
            figure.update_traces(marker={"showscale": False, "size": 8, "cmin": -last / 3, "cmax": last})
            plots.append(Plot(style_figure(figure), height=300, is_small=True))
    return plots, ""


def _draw_timeline(snapshot: Snapshot) -> Drawing:
    started = [trial for trial in snapshot.trials if trial.datetime_start is not None]
    if not started:
        return [], "No trial has been started yet."
    figure = visualization.plot_timeline(snapshot.as_study(finite=False))
    # A waiting trial has no times; Optuna would plot it at the end.
    figure.data = [bars for bars in figure.data if bars.name != TrialState.WAITING.name]
    for bars in figure.data:
        if bars.name in TrialState.__members__:
            state = TrialState[bars.name]
            bars.update(name=STATE_NAMES[state], marker={"color": COLOURS[state]})
    figure.update_layout(legend=LEGEND_ABOVE, xaxis={"title": None}, yaxis={"title": "trial"}, bargap=0.2)
    return [Plot(style_figure(figure), height=min(640, 200 + 9 * len(snapshot.trials)))], ""


_SECTIONS: Final[list[tuple[str, str, Callable[[Snapshot], Drawing | None]]]] = [
    ("History", "The value of each complete trial, and the best one so far.", _draw_history),
    (
        "Pareto front",
        "A trial that is better than a trial on the front in one objective is worse in another.",
        _draw_front,
    ),
    (
        "Intermediate values",
        "The intermediate values of each trial; a cross marks where a trial was pruned.",
        _draw_intermediate_values,
    ),
    (
        "Importances",
        "The influence of each parameter on whether a trial is among the best 10% (PED-ANOVA); the sum is 1.",
        _draw_importances,
    ),
    (
        "Parallel coordinates",
        "A line for each complete trial, through its value and its parameters. Darker is better.",
        _draw_parallel_coordinates,
    ),
    (
        "Slices",
        "The value of each complete trial against each parameter. Darker is later.",
        _draw_slices,
    ),
    ("Timeline", "The time and the state of each trial.", _draw_timeline),
]


def _labels(snapshot: Snapshot) -> list[str]:
    return [as_label(name) for name in snapshot.parameters]


def _caption(snapshot: Snapshot, objective: int) -> str:
    return snapshot.objectives[objective] if len(snapshot.objectives) > 1 else ""


def _explain_no_parameters(snapshot: Snapshot) -> str:
    if not snapshot.finite_trials:
        return snapshot.explain_no_values()
    return "" if snapshot.parameters else "No complete trial has a parameter."
