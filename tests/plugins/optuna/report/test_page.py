"""Reports run no code from the study: names, choices and attributes are untrusted text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from typing import Any, Final

import optuna
import pytest

from helios.plugins.optuna import write_report

TELL: Final = "top.postMessage('harm', '*')"
HARM: Final = (
    f'</script><img src=x onerror="{TELL}">',
    f"<script>{TELL}</script>",
    f'</title></style></textarea><svg onload="{TELL}">',
    f'"><img src=x onerror={TELL.replace(" ", "")}>',
    f"' onmouseover='{TELL.replace(chr(39), chr(96))}' x='",
    f'</span><a href="javascript:{TELL}">a</a>',
    f"<!--<script>\u2028;{TELL}//\u2029",
    f'\\u003cimg src=x onerror="{TELL}"\\u003e',
    f"&lt;img src=x onerror=&quot;{TELL}&quot;&gt;",
    f"</script><script>{TELL}</script>%{{x}}<extra></extra>",
)
ALL: Final = "".join(HARM) + "\ud800"  # An unpaired surrogate, which cannot be encoded.

# Shows two pages in frames, moves the mouse over each element, clicks it, and lists the effects.
VIEWER: Final = """<!DOCTYPE html><meta charset="utf-8"><body>
<script>
const result = { harm: { report: 0, host_group: 0 } };
addEventListener("message", event => {
  result.harm[event.source === document.getElementById("report").contentWindow ? "report" : "host_group"] += 1;
});
addEventListener("load", () => setTimeout(() => {
  for (const name of ["report", "host_group"]) {
    const page = document.getElementById(name).contentDocument;
    for (const kind of ["mouseover", "mousemove", "mouseenter", "click"])
      for (const element of page.querySelectorAll("*"))
        if (element.tagName !== "A" || name === "host_group")
          element.dispatchEvent(new MouseEvent(kind, { bubbles: true, clientX: 200, clientY: 200 }));
    result[name] = {
      title: page.title,
      heading: page.querySelector("h1")?.textContent,
      plots: page.querySelectorAll(".main-svg").length,
      images: page.querySelectorAll("img").length,
      scripts: page.querySelectorAll("script").length,
      handlers: [...page.querySelectorAll("*")].filter(
        element => [...element.attributes].some(({ name }) => name.startsWith("on"))).length,
      links: [...page.querySelectorAll("a")].map(
        link => link.getAttribute("href") ?? link.getAttributeNS("http://www.w3.org/1999/xlink", "href")),
    };
  }
  setTimeout(() => { document.body.append(Object.assign(document.createElement("pre"),
    { id: "result", textContent: JSON.stringify(result) })); }, 2000);
}, 2000));
</script>
<iframe id="report" src="report.html" width="1000" height="4000"></iframe>
<iframe id="host_group" src="host_group.html" width="1000" height="400"></iframe>
"""

FLAGS: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"),
    *("--virtual-time-budget=60000", "--dump-dom"),
)


def hostile_study() -> optuna.Study:
    """Return a study in which every text that a user can choose contains code that would report itself."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # The log would contain text that pytest-xdist cannot send.
    study = optuna.create_study(study_name=ALL, directions=["minimize"], pruner=optuna.pruners.NopPruner())
    study.set_user_attr(ALL, ALL)
    study.set_metric_names([ALL])

    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float(ALL + "x", 0, 1)
        for index, harm in enumerate(HARM):
            trial.suggest_categorical(f"{harm}{index}", [harm, ALL, index])
        trial.set_user_attr(ALL, ALL)
        for step in range(3):
            trial.report(x + step, step)
        if trial.number % 4 == 3:
            raise optuna.TrialPruned(ALL)
        return x

    study.optimize(objective, n_trials=12)
    return study


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the effects in a browser of a malicious study's report, and of a page with the same texts unescaped."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs a browser: Debian's package chromium is not installed")
    folder = tmp_path_factory.mktemp("pages")
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study = hostile_study()
    write_report(study, folder / "report.html")
    (folder / "host_group.html").write_text(
        f"<!DOCTYPE html><meta charset=utf-8><h1>{ALL}</h1>", encoding="utf-8", errors="replace"
    )
    viewer = folder / "viewer.html"
    viewer.write_text(VIEWER, encoding="utf-8")
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", viewer.as_uri()]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=170, stdin=subprocess.DEVNULL)
    found = re.search(r'<pre id="result">(.*?)</pre>', ran.stdout, flags=re.DOTALL)
    assert found is not None, ran.stdout[-2000:] + ran.stderr[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


def test_a_browser_runs_nothing_out_of_a_study(seen: dict[str, Any]) -> None:
    """In a browser, markup in names, choices and attributes is shown as text, and runs no code."""
    report = seen["report"]
    assert seen["harm"]["report"] == 0
    assert seen["harm"]["host_group"] >= 3, "the same texts run where they are not escaped"
    assert report["plots"] >= 10, "the plots are shown"
    assert (report["images"], report["handlers"]) == (0, 0)
    assert [link for link in report["links"] if link is not None and "javascript" in link] == []
    assert report["heading"] == ALL.replace("\ud800", "?")
