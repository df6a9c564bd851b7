from __future__ import annotations

import datetime
import json
import logging
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from helios.errors import ArgumentTypeError, ConfigurationError, UnknownNameError
from helios.plugins.optuna.report.report import write_report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

X = FloatDistribution(0.0, 1.0)
START = datetime.datetime(2024, 1, 2, 3, 4, 5)  # noqa: DTZ001 - Optuna's times have no zone.
FIGURES = ["History", "Intermediate values", "Importances", "Parallel coordinates", "Slices", "Timeline"]


class Page(HTMLParser):
    """The parsed page: tags with their attributes, and the texts and figures of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.sections: dict[str, str] = {}
        self.figures: dict[str, list[dict[str, Any]]] = {}
        self.rows: list[list[str]] = []
        self.best_rows: list[int] = []
        self.scripts: list[str] = []
        self._path: list[str] = []
        self._heading = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
            self.best_rows += [len(self.rows) - 2] if dict(attrs).get("class") == "best" else []
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "meta":
            self._path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._path.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._path and self._path[-1] == "h2":
            self._heading = data
            self.sections[data] = ""
            self.figures[data] = []
        elif self._path and self._path[-1] == "script":
            if dict(self.tags[-1][1]).get("type") == "application/json":
                self.figures[self._heading].append(json.loads(data))
            else:
                self.scripts.append(data)
        elif self._heading:
            self.sections[self._heading] += data
        if "td" in self._path or "th" in self._path:
            self.rows[-1][-1] += data


@pytest.fixture
def whole_library() -> None:
    """Include the 5 MB of plotly in the pages of a test."""


@pytest.fixture(autouse=True)
def small_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Omit the 5 MB of plotly from the pages, unless a test requests them."""
    if "whole_library" not in request.fixturenames:
        monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js v0 */")


def make_study(name: str = "digits", **options: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=0), **options)


def add(study: optuna.Study, state: TrialState = TrialState.COMPLETE, **parts: Any) -> None:
    """Add a trial that took a second, with these values, params, distributions, intermediate_values or system_attrs."""
    number = len(study.trials)
    trial = optuna.trial.create_trial(state=state, **parts)
    trial.datetime_start = None if state is TrialState.WAITING else START + datetime.timedelta(seconds=number)
    trial.datetime_complete = START + datetime.timedelta(seconds=number + 1) if state.is_finished() else None
    study.add_trial(trial)


def point(x: float) -> dict[str, Any]:
    return {"params": {"x": x}, "distributions": {"x": X}}


def page_of(study: optuna.Study | str, folder: Path) -> Page:
    return Page(write_report(study, folder / "report.html"))


def pruned_study() -> optuna.Study:
    """Return 12 trials: every third is pruned, trial 4 has failed, and trial 10 is the best, with 0.99."""
    study = make_study(direction="maximize")
    for number in range(12):
        parts = point(number / 12) | {"intermediate_values": {0: 0.5, 1: 0.6 + number / 100}}
        if number % 3 == 2:
            add(study, TrialState.PRUNED, value=0.6, **parts)
        elif number == 4:
            add(study, TrialState.FAIL, **point(0.4))
        else:
            add(study, value=0.89 + number / 100, **parts)
    return study


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_shows_the_study(tmp_path: Path) -> None:
    """The page has a summary, the best trial, each plot with an explanation, and a table of the trials."""
    page = page_of(pruned_study(), tmp_path)
    assert list(page.sections) == ["Best trial", *FIGURES, "Trials"]
    assert "Trial 10." in page.sections["Best trial"]
    assert "0.99" in page.sections["Best trial"]
    for title in FIGURES:
        assert len(page.figures[title]) == 1
        assert page.figures[title][0]["data"]
        assert len(page.sections[title].strip()) > 20
    head, *rows = page.rows
    assert head == ["trial", "state", "value", "reports", "duration", "x"]
    assert [row[:2] for row in rows[:5]] == [
        ["0", "complete"],
        ["1", "complete"],
        ["2", "pruned"],
        ["3", "complete"],
        ["4", "failed"],
    ]
    assert rows[10] == ["10", "complete", "0.99", "2", "1 s", "0.833333"]
    assert rows[4] == ["4", "failed", "", "0", "1 s", "0.4"]
    assert page.best_rows == [10]


def test_pruned_trials_are_marked(tmp_path: Path) -> None:
    """Only the last report of each pruned trial has a cross, and the best trial has its own style."""
    (figure,) = page_of(pruned_study(), tmp_path).figures["Intermediate values"]
    lines = {line["hovertemplate"].split(",")[0]: line for line in figure["data"]}
    assert len(lines) == 11
    for number in (0, 2, 5, 8, 10, 11):
        line = lines[f"trial {number}"]
        pruned = number % 3 == 2
        assert (line["marker"]["symbol"], line["marker"]["size"]) == (("x", [0, 9]) if pruned else ("circle", [0, 0]))
        assert line["name"] == ("pruned" if pruned else "best" if number == 10 else "complete")
    assert sorted(line["name"] for line in figure["data"] if line["showlegend"]) == ["best", "complete", "pruned"]


@pytest.mark.usefixtures("whole_library")
def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    """No tag refers to another file, a policy forbids loading, and plotly is in the page."""
    page = page_of(pruned_study(), tmp_path)
    references = [
        (tag, name) for tag, attrs in page.tags for name in attrs if name in ("src", "href", "data", "action")
    ]
    assert references == []
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base", "video", "audio"}
    policies = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert [policy for policy in policies if policy and policy.startswith("default-src 'none';")] == policies
    assert len(policies) == 1
    assert re.findall("https?:", policies[0] or "") == []
    library, drawing = page.scripts
    assert "plotly.js v" in library[:100]
    assert "showSendToCloud: false" in drawing
    assert "https:" not in drawing


def test_text_is_not_read_as_html(tmp_path: Path) -> None:
    """Names and choices that look like HTML are shown unchanged, in the page and in the figures."""
    evil = "<script>alert(1)</script><img src=x>&amp;"
    study = make_study(evil)
    for number, choice in enumerate([evil, "b", evil]):
        params = {f"<b>{evil}": choice}
        add(
            study,
            value=number,
            params=params,
            distributions={f"<b>{evil}": CategoricalDistribution([evil, "b"])},
            intermediate_values={0: 1.0},
            user_attrs={"note": evil},
        )
    page = page_of(study, tmp_path)
    assert len(page.scripts) == 2
    assert "img" not in {tag for tag, _ in page.tags}
    assert "b" not in {tag for tag, _ in page.tags}
    assert page.rows[0][-1] == f"<b>{evil}"
    assert page.rows[1][-1] == evil
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    embedded = re.findall('<script type="application/json">(.*?)</script>', source, re.DOTALL)
    assert [data for data in embedded if "<" in data] == []
    texts = json.dumps(page.figures)
    assert "&lt;script>" not in texts
    assert "&lt;script&gt;alert" in texts
    assert "<script" not in texts


@pytest.mark.usefixtures("whole_library")
def test_the_same_study_gives_the_same_page(tmp_path: Path) -> None:
    """The page contains no random values and no current time, and does not depend on the hash seed."""
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; "
        "from tests.plugins.optuna.report.test_report import equal_parameters; "
        "from helios.plugins.optuna.report.report import write_report; write_report(equal_parameters(), sys.argv[1])"
    )
    here, there = tmp_path / "here.html", tmp_path / "there.html"
    write_report(equal_parameters(), here)
    subprocess.run([sys.executable, "-c", code, there, *sys.path], check=True, env={"PYTHONHASHSEED": "1"})
    assert here.read_bytes() == there.read_bytes()


# ----------------------------------------------------------------------------------------------------------- small ones


def empty() -> optuna.Study:
    return make_study()


def one_trial() -> optuna.Study:
    study = make_study()
    add(study, value=1.0, **point(0.5))
    return study


def only(*states: TrialState) -> Callable[[], optuna.Study]:
    def make() -> optuna.Study:
        study = make_study()
        for state in states * 2:
            pruned = state is TrialState.PRUNED
            add(
                study,
                state,
                value=0.5 if pruned else None,
                intermediate_values={0: 0.5} if pruned else {},
                **point(0.5),
            )
        return study

    make.__name__ = "only_" + "_".join(state.name.lower() for state in states)
    return make


def without_parameters() -> optuna.Study:
    study = make_study()
    for value in range(3):
        add(study, value=value)
    return study


def equal_parameters() -> optuna.Study:
    study = make_study()
    for value in range(3):
        add(study, value=value, params=dict.fromkeys("abcdefg", 0.5), distributions=dict.fromkeys("abcdefg", X))
    return study


def infinite_values() -> optuna.Study:
    study = make_study()
    for value in (1.0, math.inf, 0.5, -math.inf):
        add(study, value=value, intermediate_values={0: math.nan, 1: 1.0, 2: value, 3: math.nan}, **point(0.5))
    add(study, TrialState.PRUNED, value=None, intermediate_values={0: math.nan, 5: -math.inf}, **point(0.1))
    return study


def nothing_but_infinite_values() -> optuna.Study:
    study = make_study(direction="maximize")
    add(study, value=math.inf, **point(0.5))
    return study


def infeasible() -> optuna.Study:
    study = make_study()
    for value in range(3):
        add(study, value=value, constraints={"memory": 1.0}, **point(0.5))
    return study


def conditional() -> optuna.Study:
    study = make_study()
    kinds = CategoricalDistribution(["sgd", "adam", None, True, 3])
    for number, choice in enumerate(kinds.choices * 3):
        params = {"kind": choice} | ({"m": number / 20, "n": number + 1} if choice == "sgd" else {})
        domains = {"kind": kinds, "m": FloatDistribution(0, 1), "n": IntDistribution(1, 100, log=True)}
        add(study, value=number % 7, params=params, distributions={name: domains[name] for name in params})
    return study


def enqueued_outside_of_the_space() -> optuna.Study:
    study = make_study()
    for x in (0.5, 7.0, 0.1):
        study.enqueue_trial({"x": x})

    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("x", 0.0, 1.0)

    with pytest.warns(UserWarning, match="is out of range"):
        study.optimize(objective, n_trials=3)
    return study


def objectives(count: int) -> Callable[[], optuna.Study]:
    def make() -> optuna.Study:
        study = make_study(directions=(["minimize", "maximize"] * 2)[:count])
        for number in range(8):
            values = [number / 8, number % 3, -number, 1.0][:count]
            add(study, values=[math.inf, *values[1:]] if number == 7 else values, **point(number / 8))
        add(study, TrialState.FAIL)
        return study

    make.__name__ = f"{count}_objectives"
    return make


def objectives_of_nothing() -> optuna.Study:
    return make_study(directions=["minimize", "maximize"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty, {"Best trial": "no trial yet", **dict.fromkeys(FIGURES, "no trial yet"), "Trials": "no trial yet"}
         | {"Intermediate values": "No trial has reported", "Timeline": "No trial has been started"}),
        (one_trial, {"Importances": "Importance needs two", "Intermediate values": "No trial has reported"}),
        (only(TrialState.PRUNED), dict.fromkeys(
            ["Best trial", "History", "Importances", "Parallel coordinates", "Slices"], "there are 2 pruned")),
        (only(TrialState.FAIL), dict.fromkeys(["Best trial", "History", "Importances", "Slices"], "there are 2 failed")
         | {"Intermediate values": "No trial has reported"}),
        (only(TrialState.RUNNING, TrialState.WAITING), {"History": "there are 2 running, 2 waiting"}),
        (only(TrialState.WAITING), {"Timeline": "No trial has been started"}),
        (without_parameters, dict.fromkeys(["Importances", "Parallel coordinates", "Slices"], "has a parameter")),
        (infinite_values, {"History": "is not finite: trial 1, 3.", "Intermediate values": "infinite: 12 values"}),
        (nothing_but_infinite_values, {"History": "No complete trial has a finite value"}),
        (infeasible, {"Best trial": "No complete trial is feasible"}),
        (conditional, {}),
        (enqueued_outside_of_the_space, {}),
        (objectives(2), {"Best trials": "On the Pareto front"}),
        (objectives(3), {"Best trials": "On the Pareto front"}),
        (objectives(4), {"Pareto front": "A front of 4 objectives cannot be plotted"}),
        (objectives_of_nothing, {"Best trials": "no trial yet", "Pareto front": "no trial yet"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_small_study_has_a_complete_page(
    make: Callable[[], optuna.Study], words: dict[str, str], tmp_path: Path
) -> None:
    """A page is written for any study; where data are missing it says so, and no plot is empty or broken."""
    study = make()
    page = page_of(study, tmp_path)
    for title, said in words.items():
        assert said in page.sections[title]
    for title, text in page.sections.items():
        assert "could not be created" not in text, title
        if not page.figures[title]:
            assert text.strip(), title
        for figure in page.figures[title]:
            assert figure["data"], title
    assert len(page.rows) == (len(study.trials) + 1 if study.trials else 0)


def test_infinite_values_are_not_best(tmp_path: Path) -> None:
    """A trial with a loss of minus infinity is not the best one, and not part of the line of the best values."""
    page = page_of(infinite_values(), tmp_path)
    assert "Trial 2." in page.sections["Best trial"]
    assert page.best_rows == [2]
    assert page.rows[4][:3] == ["3", "complete", "-inf"]
    (history,) = page.figures["History"]
    values, best, *_ = history["data"]
    assert (values["x"], values["y"]) == ([0, 2], [1.0, 0.5])
    assert best["y"] == [1.0, 1.0, 0.5, 0.5, 0.5]


def test_waiting_trials_are_not_in_the_timeline(tmp_path: Path) -> None:
    """A waiting trial is in the table but not in the timeline; the others keep their numbers there."""
    study = make_study()
    for state in (TrialState.COMPLETE, TrialState.WAITING, TrialState.FAIL):
        add(study, state, value=1.0 if state is TrialState.COMPLETE else None)
    page = page_of(study, tmp_path)
    bars = {bar["name"]: bar["y"] for bar in page.figures["Timeline"][0]["data"]}
    assert bars == {"complete": [0], "failed": [2]}
    assert [row[1] for row in page.rows[1:]] == ["complete", "waiting", "failed"]


def test_each_objective_has_its_history(tmp_path: Path) -> None:
    """With several objectives each history has its own direction and name."""
    study = make_study(directions=["minimize", "maximize"])
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["loss", "accuracy"])
    for values in ([3, 1], [2, 3], [4, 2]):
        add(study, values=values, **point(0.5))
    page = page_of(study, tmp_path)
    best = [
        next(line["y"] for line in figure["data"] if line["name"] == "best so far")
        for figure in page.figures["History"]
    ]
    assert best == [[3, 2, 2], [1, 3, 3]]
    assert re.findall("loss|accuracy", page.sections["History"]) == ["loss", "accuracy"]
    assert page.rows[0][2:4] == ["loss", "accuracy"]
    assert page.best_rows == [1]


def test_large_studies_are_drawn_in_part(tmp_path: Path) -> None:
    """Of 400 trials the table shows all, and plots with a line for each trial the best or last 300."""
    study = make_study(direction="maximize")
    for number in range(400):
        add(study, value=number % 40, intermediate_values={0: 1.0}, **point(number / 400))
    page = page_of(study, tmp_path)
    assert len(page.rows) == 401
    (reports,), (parallel,) = page.figures["Intermediate values"], page.figures["Parallel coordinates"]
    assert {line["hovertemplate"].split(",")[0] for line in reports["data"]} == {f"trial {i}" for i in range(100, 400)}
    values = [float(line["customdata"][0][1]) for line in parallel["data"] if line["mode"] == "lines"]
    assert len(values) == 300
    assert min(values) == 10
    assert "The last 300 of 400 trials" in page.sections["Intermediate values"]
    assert "The 300 best of 400 complete trials, by value" in page.sections["Parallel coordinates"]


def test_a_plot_that_fails_does_not_affect_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If Optuna cannot create a plot, the page shows the reason and all other plots."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a reason")

    monkeypatch.setattr("helios.plugins.optuna.report.figures.visualization.plot_slice", fail)
    page = page_of(pruned_study(), tmp_path)
    assert "This plot could not be created: RuntimeError: a reason" in page.sections["Slices"]
    assert [title for title, figures in page.figures.items() if figures] == [f for f in FIGURES if f != "Slices"]


# ------------------------------------------------------------------------------------------------------------- storages


def test_a_study_is_found_by_the_url_of_its_storage(tmp_path: Path) -> None:
    """For a database with several studies a name is needed, and the message lists them; with one study it is not."""
    url = f"sqlite:///{tmp_path / 'study.db'}"
    add(make_study("first", storage=url), value=1.5, **point(0.25))
    page = page_of(url, tmp_path)
    assert page.rows[1][2] == "1.5"
    make_study("second", storage=url)
    with pytest.raises(ConfigurationError, match=r"holds 2 studies: .*study_name=: \['first', 'second'\]"):
        write_report(url, tmp_path / "x.html")
    with pytest.raises(UnknownNameError, match=r"holds no study 'third': there are \['first', 'second'\]"):
        write_report(url, tmp_path / "x.html", study_name="third")
    assert not (tmp_path / "x.html").exists()
    write_report(url, tmp_path / "x.html", study_name="second")
    assert "<h1>second</h1>" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_a_storage_without_a_study_is_refused(tmp_path: Path) -> None:
    """A missing database is not created, and a value that is not a URL or a study is rejected."""
    missing = tmp_path / "missing.db"
    for url in (f"sqlite:///{missing}", "sqlite://"):
        with pytest.raises(ConfigurationError, match="there is no database"):
            write_report(url, tmp_path / "x.html")
    assert not missing.exists()
    with pytest.raises(ConfigurationError, match="^storage is no storage URL"):
        write_report("digits", tmp_path / "x.html")
    optuna.storages.RDBStorage(f"sqlite:///{missing}").engine.dispose()
    with pytest.raises(ConfigurationError, match="holds no study"):
        write_report(f"sqlite:///{missing}", tmp_path / "x.html")
    with pytest.raises(ArgumentTypeError, match="pass a study, or a URL"):
        write_report(3, tmp_path / "x.html")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigurationError, match="pass one of them"):
        write_report(make_study(), tmp_path / "x.html", study_name="other")
    assert not (tmp_path / "x.html").exists()


def test_the_page_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are created, the old page stays until the new one is complete, and no temporary file is left."""
    path = write_report(one_trial(), tmp_path / "new" / "report.html")
    assert path == tmp_path / "new" / "report.html"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    path.write_text("old", encoding="utf-8")

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_report(one_trial(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_without_plotly_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install, and no file is written."""
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ImportError, match=r"pip install 'helios-train\[tune\]'"):
        write_report(empty(), tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_a_report_logs_nothing(tmp_path: Path) -> None:
    """Optuna logs nothing and warns of nothing while a report is written, and logs as before afterwards."""
    studies = [infinite_values(), empty(), objectives(2)()]
    records: list[logging.LogRecord] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = Collector()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    logging.getLogger("optuna").addHandler(handler)
    try:
        for study in studies:
            write_report(study, tmp_path / "x.html")
        assert [record.getMessage() for record in records] == []
        optuna.create_study()
        assert len(records) == 1
    finally:
        logging.getLogger("optuna").removeHandler(handler)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
