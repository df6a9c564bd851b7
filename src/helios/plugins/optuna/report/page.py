"""The report as one self-contained HTML page."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any, Final

from helios.plugins.optuna.report.snapshot import STATE_NAMES

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable, Sequence

    from optuna.trial import FrozenTrial

    from helios.plugins.optuna.report.figures import Plot, Section
    from helios.plugins.optuna.report.snapshot import Snapshot

_STYLE: Final = """
:root { color-scheme: light; --ink: #0f172a; --text: #334155; --faint: #64748b; --line: #e2e8f0; --accent: #3b76d6; }
* { box-sizing: border-box; }
body {
  margin: 0; background: #f6f8fb; color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; color: var(--ink); overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.2rem; color: var(--ink); }
h3 { margin: 16px 0 0; font-size: 0.95rem; color: var(--ink); }
.kicker { margin: 0 0 4px; color: var(--accent); font-weight: 600; font-size: 0.8rem; letter-spacing: 0.08em;
  text-transform: uppercase; }
.explanation { margin: 2px 0 12px; color: var(--faint); font-size: 0.95rem; }
.note { margin: 8px 0 0; color: var(--faint); font-size: 0.95rem; }
section { margin-top: 20px; padding: 22px 24px; background: #fff; border: 1px solid var(--line); border-radius: 10px; }
.facts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 24px 0 0; }
.facts div { padding: 12px 16px; background: #fff; border: 1px solid var(--line); border-radius: 10px; }
dt { color: var(--faint); font-size: 0.85rem; }
dd { margin: 0; color: var(--ink); font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere; }
.small { display: grid; gap: 8px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); }
.figure { width: 100%; }
.wide { min-width: 0; overflow-x: auto; overflow-y: hidden; }
.scroll { overflow: auto; max-height: 34rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: #fff; color: var(--faint); font-weight: 600; }
th:nth-child(2), td:nth-child(2) { text-align: left; }
tr.best td { color: var(--ink); font-weight: 650; background: #eef4fd; }
tbody tr:hover td { background: #f6f8fb; }
.state::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 7px; border-radius: 50%;
  background: var(--state); }
.complete { --state: #3b76d6; } .pruned { --state: #e08e2b; } .failed { --state: #d64545; }
.running { --state: #2f9e6e; } .waiting { --state: #94a3b8; }
footer { margin-top: 28px; color: var(--faint); font-size: 0.85rem; }
@media (max-width: 640px) { main { padding: 24px 12px 40px; } section { padding: 16px 14px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } .scroll { max-height: none; } }
"""

_SCRIPT: Final = """
const settings = {
  responsive: true,
  displaylogo: false,
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  showSendToCloud: false, // By default plotly has a button that uploads the data.
  plotlyServerURL: "",
};
for (const data of document.querySelectorAll("script[type='application/json']")) {
  const figure = JSON.parse(data.textContent);
  Plotly.newPlot(data.previousElementSibling, figure.data, figure.layout, settings);
}
"""

# The page may not load anything.
_POLICY: Final = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(snapshot: Snapshot, sections: Sequence[Section], library: str) -> str:
    """Return the page.

    Args:
        snapshot: the study.
        sections: the sections with plots.
        library: the JavaScript of plotly.
    """
    title = _escape(snapshot.name)
    body = "\n".join([_write_facts(snapshot), *map(_write_section, sections), _write_table(snapshot)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{title}</title>
<style>{_STYLE}</style>
<script>{library}</script>
</head>
<body>
<main>
<header>
<p class="kicker">Study</p>
<h1>{title}</h1>
{body}
<footer>Written by Helios. This page is self-contained and loads nothing.</footer>
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _escape(text: object) -> str:
    return html.escape(str(text))


# --------------------------------------------------------------------------------------------------------------- facts


def _write_facts(snapshot: Snapshot) -> str:
    objectives = [
        f"{direction.name.lower()} {name}"
        for direction, name in zip(snapshot.directions, snapshot.objectives, strict=True)
    ]
    facts = {
        "Objective": ", ".join(objectives),
        "Trials": str(len(snapshot.trials)),
        "States": snapshot.describe_states() or "none yet",
    }
    starts = [trial.datetime_start for trial in snapshot.trials if trial.datetime_start]
    ends = [trial.datetime_complete for trial in snapshot.trials if trial.datetime_complete]
    if starts and ends:
        facts["First start to last end"] = _format_duration(max(ends) - min(starts))
    cells = "".join(f"<div><dt>{name}</dt><dd>{_escape(fact)}</dd></div>" for name, fact in facts.items())
    return f'<dl class="facts">{cells}</dl>\n</header>\n{_write_best(snapshot)}'


def _write_best(snapshot: Snapshot) -> str:
    best = snapshot.best_trials
    if len(snapshot.directions) > 1:
        if not best:
            return _wrap("Best trials", "", f'<p class="note">{_escape(snapshot.explain_no_values())}</p>')
        numbers = ", ".join(str(trial.number) for trial in best)
        return _wrap("Best trials", f"On the Pareto front (no trial is better in all objectives): {numbers}.", "")
    if not best:
        note = snapshot.explain_no_values() if not snapshot.finite_trials else "No complete trial is feasible."
        return _wrap("Best trial", "", f'<p class="note">{_escape(note)}</p>')
    (trial,) = best
    facts = {snapshot.objectives[0]: _show(trial.values[0]), **{k: _show(v) for k, v in trial.params.items()}}
    cells = "".join(f"<div><dt>{_escape(k)}</dt><dd>{_escape(v)}</dd></div>" for k, v in facts.items())
    return _wrap("Best trial", f"Trial {trial.number}.", f'<dl class="facts">{cells}</dl>')


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _format_duration(duration: datetime.timedelta) -> str:
    seconds = duration.total_seconds()
    if seconds < 60:  # noqa: PLR2004 - a minute has them.
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


# ------------------------------------------------------------------------------------------------------------ sections


def _wrap(title: str, explanation: str, content: str) -> str:
    paragraph = f'<p class="explanation">{_escape(explanation)}</p>' if explanation else ""
    return f"<section>\n<h2>{_escape(title)}</h2>\n{paragraph}\n{content}\n</section>"


def _write_section(section: Section) -> str:
    parts = [_write_plot(plot) for plot in section.plots]
    if any(plot.is_small for plot in section.plots):
        parts = ['<div class="small">', *parts, "</div>"]
    if section.note:
        parts.append(f'<p class="note">{_escape(section.note)}</p>')
    return _wrap(section.title, section.explanation if section.plots else "", "\n".join(parts))


def _write_plot(plot: Plot) -> str:
    data = plot.figure.to_json()  # It escapes "<", so that no text can end the script.
    caption = f"<h3>{_escape(plot.caption)}</h3>" if plot.caption else ""
    size = f"height: {plot.height}px" + (f"; min-width: {plot.min_width}px" if plot.min_width else "")
    box = f'<div class="figure" style="{size}"></div>'
    return f'<div class="wide">{caption}{box}<script type="application/json">{data}</script></div>'


# --------------------------------------------------------------------------------------------------------------- table


def _write_table(snapshot: Snapshot) -> str:
    if not snapshot.trials:
        return _wrap("Trials", "", f'<p class="note">{_escape(snapshot.explain_no_values())}</p>')
    parameters = list(dict.fromkeys(name for trial in snapshot.trials for name in trial.params))
    head = ["trial", "state", *snapshot.objectives, "reports", "duration", *parameters]
    best = {trial.number for trial in snapshot.best_trials}
    rows = [_write_row(trial, snapshot, parameters, is_best=trial.number in best) for trial in snapshot.trials]
    table = "\n".join(
        [
            '<div class="scroll"><table>',
            f"<thead><tr>{_write_cells('th', head)}</tr></thead>",
            "<tbody>",
            *rows,
            "</tbody></table></div>",
        ]
    )
    marked = "the best one is marked" if len(snapshot.directions) == 1 else "those on the Pareto front are marked"
    return _wrap("Trials", f"All trials; {marked}. A cell is empty if a trial has no such value.", table)


def _write_row(trial: FrozenTrial, snapshot: Snapshot, parameters: Sequence[str], *, is_best: bool) -> str:
    values = [_show(value) for value in trial.values] if trial.values is not None else [""] * len(snapshot.objectives)
    not_finite = sum(not math.isfinite(value) for value in trial.intermediate_values.values())
    reports = f"{len(trial.intermediate_values)}" + (f" ({not_finite} not finite)" if not_finite else "")
    duration = _format_duration(trial.duration) if trial.duration is not None else ""
    state = f'<td><span class="state {STATE_NAMES[trial.state]}">{STATE_NAMES[trial.state]}</span></td>'
    params = [_show(trial.params[name]) if name in trial.params else "" for name in parameters]
    cells = f"<td>{trial.number}</td>{state}{_write_cells('td', [*values, reports, duration, *params])}"
    return f'<tr class="best">{cells}</tr>' if is_best else f"<tr>{cells}</tr>"


def _write_cells(tag: str, texts: Iterable[object]) -> str:
    return "".join(f"<{tag}>{_escape(text)}</{tag}>" for text in texts)
