"""The pictures of a study: Optuna's own figures in the dress of the report, or words where there is nothing to draw."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any, Final

from optuna import visualization
from optuna.trial import TrialState

from helios.plugins.optuna.report.snapshot import WORDS, as_label, is_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from optuna.trial import FrozenTrial

    from helios.plugins.optuna.report.snapshot import Snapshot

# One line is drawn for each trial in some pictures: with more of them a browser crawls, and nobody sees one.
MOST_LINES: Final = 300

_COLOURS: Final = {
    TrialState.COMPLETE: "#3b76d6",
    TrialState.PRUNED: "#e08e2b",
    TrialState.FAIL: "#d64545",
    TrialState.RUNNING: "#2f9e6e",
    TrialState.WAITING: "#94a3b8",
}
_BEST: Final = "#0f172a"
_FONT: Final = {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif", "size": 13}
_LEGEND_ABOVE: Final = {"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0, "xanchor": "left", "title": None}
_NO_BUTTONS: Final = ["select2d", "lasso2d", "autoScale2d"]
_FLAT: Final = 2
_SPATIAL: Final = 3


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure and how it is shown.

    Args:
        figure: a plotly figure.
        height: in pixels.
        caption: a line above it.
        is_small: whether several of them stand side by side.
        least_width: in pixels; where the page is narrower, the figure is moved sideways to be read.
    """

    figure: Any
    height: int = 380
    caption: str = ""
    is_small: bool = False
    least_width: int = 0


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Args:
        title: its heading.
        explanation: one line that says how to read it.
        pictures: what is drawn.
        words: what there is to say about what is not drawn.
    """

    title: str
    explanation: str
    pictures: Sequence[Picture]
    words: str


Drawing = tuple[list[Picture], str]


def draw_sections(snapshot: Snapshot) -> list[Section]:
    """Return every section of the report that consists of pictures, in the order of the page."""
    drawings = ((title, explanation, _draw(draw, snapshot)) for title, explanation, draw in _SECTIONS)
    return [Section(title, explanation, *drawing) for title, explanation, drawing in drawings if drawing is not None]


def _draw(draw: Callable[[Snapshot], Drawing | None], snapshot: Snapshot) -> Drawing | None:
    try:
        return draw(snapshot)
    except Exception as error:  # noqa: BLE001 - one picture that Optuna cannot draw shall not cost the others; the page says why.
        reason = " ".join(str(error).split())[:200]
        return [], f"This picture could not be drawn: {type(error).__name__}: {reason}"


# ------------------------------------------------------------------------------------------------------------- drawers


def _draw_history(snapshot: Snapshot) -> Drawing:
    if not snapshot.judged:
        return [], snapshot.say_why_nothing_is_judged()
    pictures = []
    for objective, name in enumerate(snapshot.objectives):
        figure = visualization.plot_optimization_history(snapshot.as_study(objective), target_name=as_label(name))
        values, best, *_ = figure.data
        values.update(name="complete trial", marker={"size": 8, "color": _COLOURS[TrialState.COMPLETE], "opacity": 0.8})
        best.update(name="best so far", line={"width": 2, "color": _BEST, "shape": "hv"})
        figure.update_layout(xaxis={"title": "trial"}, legend=_LEGEND_ABOVE)
        pictures.append(Picture(_dress(figure), caption=_caption(snapshot, objective)))
    left_out = [str(trial.number) for trial in snapshot.with_state(TrialState.COMPLETE) if not is_finite(trial)]
    return pictures, f"Left out, because a value is not finite: trial {', '.join(left_out)}." if left_out else ""


def _draw_front(snapshot: Snapshot) -> Drawing | None:
    count = len(snapshot.objectives)
    if count == 1:
        return None
    if not snapshot.judged:
        return [], snapshot.say_why_nothing_is_judged()
    if count not in (_FLAT, _SPATIAL):
        return [], f"There is no picture of a front of {count} objectives: the table marks the trials on it."
    names = [as_label(name) for name in snapshot.objectives]
    figure = visualization.plot_pareto_front(snapshot.as_study(), target_names=names)
    colours = ["#cccccc", _COLOURS[TrialState.COMPLETE], _BEST][-len(figure.data) :]
    for points, colour in zip(figure.data, colours, strict=True):
        points.marker = {"size": 9 if count == _FLAT else 5, "color": colour, "opacity": 0.85}
    figure.data[-2].update(name="other trial", showlegend=True)
    figure.data[-1].update(name="on the front", showlegend=True)
    camera = {"eye": {"x": 1.7, "y": 1.7, "z": 1.1}}
    figure.update_layout(legend=_LEGEND_ABOVE, **({"scene_camera": camera} if count == _SPATIAL else {}))
    return [Picture(_dress(figure), height=480)], ""


def _draw_intermediate_values(snapshot: Snapshot) -> Drawing | None:
    if len(snapshot.objectives) > 1:
        return None  # Optuna takes reports, and prunes, with one objective alone.
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    reporting = [trial for trial in snapshot.with_state(*states) if trial.intermediate_values]
    if not reporting:
        return [], "No trial has reported a value while it ran. Without reports no pruner can stop a trial early."
    shown = reporting[-MOST_LINES:]
    figure = visualization.plot_intermediate_values(dataclasses.replace(snapshot, trials=shown).as_study(finite=False))
    seen: set[str] = set()
    for line, trial in zip(figure.data, shown, strict=True):
        _dress_line(line, trial, is_best=trial in snapshot.best_trials)
        line.showlegend = line.name not in seen
        seen.add(line.name)
    figure.data = sorted(figure.data, key=lambda line: (line.line.width, line.legendgroup == TrialState.PRUNED.name))
    figure.update_layout(
        xaxis={"title": "step"},
        yaxis={"title": as_label(snapshot.objectives[0])},
        legend=_LEGEND_ABOVE,
        showlegend=True,
    )
    words = f"The last {MOST_LINES} of {len(reporting)} trials are drawn. " if len(shown) < len(reporting) else ""
    odd = sum(not math.isfinite(value) for trial in shown for value in trial.intermediate_values.values())
    words += f"Where a reported value is NaN or infinite a line has a gap: {odd} of them." if odd else ""
    return [Picture(_dress(figure), height=420)], words.strip()


def _draw_importances(snapshot: Snapshot) -> Drawing:
    if missing := _say_what_parameters_lack(snapshot):
        return [], missing
    if len(snapshot.judged) == 1:
        return [], "One complete trial says nothing about importance: it takes two, and a few dozen to be of use."
    pictures = []
    for objective in range(len(snapshot.objectives)):
        # Optuna's default evaluator, PED-ANOVA, draws no random numbers; given their order, equal parameters keep it.
        figure = visualization.plot_param_importances(snapshot.as_study(objective), params=sorted(_labels(snapshot)))
        figure.update_traces(marker={"color": _COLOURS[TrialState.COMPLETE]}, textfont={"size": 13})
        figure.update_layout(bargap=0.35, xaxis={"title": "importance", "range": [0, 1.12]}, yaxis={"title": None})
        height = 120 + 34 * len(snapshot.parameters)
        pictures.append(Picture(_dress(figure), height, caption=_caption(snapshot, objective)))
    words = f"Estimated from {len(snapshot.judged)} complete trials."
    return pictures, words + (" There is but one parameter." if len(snapshot.parameters) == 1 else "")


def _draw_parallel_coordinates(snapshot: Snapshot) -> Drawing:
    if missing := _say_what_parameters_lack(snapshot):
        return [], missing
    name = snapshot.objectives[0]
    figure = visualization.plot_parallel_coordinate(snapshot.as_study(most=MOST_LINES), target_name=as_label(name))
    for line in figure.select_traces(selector={"mode": "lines"}):
        line.update(opacity=0.75, line={"color": _darken(line.line.color)})
    scale = figure.data[-1].marker
    scale.colorscale = [(place, _darken(colour)) for place, colour in scale.colorscale]
    crowded = len(snapshot.judged) > MOST_LINES
    words = f"The {MOST_LINES} best of {len(snapshot.judged)} complete trials, by {name}, are drawn." if crowded else ""
    axes = len(snapshot.objectives) + len(snapshot.parameters)
    return [Picture(_dress(figure, top=30), height=440, least_width=180 + 110 * axes)], words


def _draw_slices(snapshot: Snapshot) -> Drawing:
    if missing := _say_what_parameters_lack(snapshot):
        return [], missing
    pictures = []
    for objective, name in enumerate(snapshot.objectives):
        study = snapshot.as_study(objective)
        for label in _labels(snapshot):
            figure = visualization.plot_slice(study, params=[label], target_name=as_label(name))
            # The earliest shall not be white on white.
            last = max(len(snapshot.trials) - 1, 1)
            figure.update_traces(marker={"showscale": False, "size": 8, "cmin": -last / 3, "cmax": last})
            pictures.append(Picture(_dress(figure), height=300, is_small=True))
    return pictures, ""


def _draw_timeline(snapshot: Snapshot) -> Drawing:
    started = [trial for trial in snapshot.trials if trial.datetime_start is not None]
    if not started:
        return [], "No trial has been started yet."
    figure = visualization.plot_timeline(snapshot.as_study(finite=False))
    # A trial that waits has no time; Optuna draws it at the end.
    figure.data = [bars for bars in figure.data if bars.name != TrialState.WAITING.name]
    for bars in figure.data:
        if bars.name in TrialState.__members__:
            state = TrialState[bars.name]
            bars.update(name=WORDS[state], marker={"color": _COLOURS[state]})
    figure.update_layout(legend=_LEGEND_ABOVE, xaxis={"title": None}, yaxis={"title": "trial"}, bargap=0.2)
    return [Picture(_dress(figure), height=min(640, 200 + 9 * len(snapshot.trials)))], ""


_SECTIONS: Final[list[tuple[str, str, Callable[[Snapshot], Drawing | None]]]] = [
    ("History", "The value of each complete trial, and the best one so far.", _draw_history),
    (
        "Pareto front",
        "Whatever is better than a trial on the front in one objective is worse than it in another.",
        _draw_front,
    ),
    (
        "Intermediate values",
        "What each trial reported while it ran; a cross is where a trial was pruned.",
        _draw_intermediate_values,
    ),
    (
        "Importances",
        "How much each parameter decides whether a trial is among the best tenth (PED-ANOVA); they add up to 1.",
        _draw_importances,
    ),
    (
        "Parallel coordinates",
        "A line for each complete trial: through its value, then through its parameters. The darker, the better.",
        _draw_parallel_coordinates,
    ),
    (
        "Slices",
        "The value of each complete trial against one parameter at a time. The darker, the later.",
        _draw_slices,
    ),
    ("Timeline", "When each trial ran, and how it ended.", _draw_timeline),
]


# --------------------------------------------------------------------------------------------------------------- dress


def _dress(figure: Any, top: int = 12) -> Any:
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
        modebar={"bgcolor": "rgba(255,255,255,0)", "color": "#94a3b8", "activecolor": _BEST, "remove": _NO_BUTTONS},
    )
    figure.update_xaxes(automargin=True, exponentformat="e")
    figure.update_yaxes(automargin=True, exponentformat="e")
    # One label for each power of ten.
    figure.update_xaxes(dtick=1, selector={"type": "log"})
    return figure


def _dress_line(line: Any, trial: FrozenTrial, *, is_best: bool) -> None:
    colour = _BEST if is_best else _COLOURS[trial.state]
    sizes = [0.0] * len(line.y)
    ends = [i for i, value in enumerate(line.y) if math.isfinite(value)]
    if ends and (trial.state is TrialState.PRUNED or len(ends) == 1):
        sizes[ends[-1]] = 9.0
    line.update(
        name="best" if is_best else WORDS[trial.state],
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
        hovertemplate=f"trial {trial.number}, {WORDS[trial.state]}<br>step %{{x}}: %{{y:.6g}}<extra></extra>",
    )


def _darken(colour: str) -> str:
    # The lightest of Optuna's blues cannot be seen on white.
    channels = [round(0.82 * float(channel)) for channel in re.findall(r"[\d.]+", colour)]
    return f"rgb({', '.join(map(str, channels))})"


def _labels(snapshot: Snapshot) -> list[str]:
    return [as_label(name) for name in snapshot.parameters]


def _caption(snapshot: Snapshot, objective: int) -> str:
    return snapshot.objectives[objective] if len(snapshot.objectives) > 1 else ""


def _say_what_parameters_lack(snapshot: Snapshot) -> str:
    if not snapshot.judged:
        return snapshot.say_why_nothing_is_judged()
    return "" if snapshot.parameters else "No complete trial has a parameter."
