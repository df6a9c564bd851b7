"""Real scripts, which start their ranks in Python's own way: as new interpreters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from helios.errors import ConfigurationError
from helios.testing import TinyDataModule, TinyModel
from tests.distributed.parts import PATIENCE, Trouble, TroubledPlugin, wait_for
from tests.processes import survivors
from tests.trainer.parts import make_trainer

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]

# With the fork server, as there are two runs, and what is printed counts alone.
TALKATIVE = """
import multiprocessing
import sys
from helios import Trainer
from helios.errors import RankFailedError
from helios.testing import TinyDataModule, TinyModel

class Failing(TinyModel):
    def on_training_start(self):
        if self.rank == 1:
            raise KeyError("enough")

def main():
    options = {"total_steps": 2, "num_processes": 2, "log_path": sys.argv[1], "enable_file_logging": True}
    shown = {"valid_frequency": 1, "enable_progress_bar": True}
    assert Trainer(run_name="well", **shown, **options).fit(TinyModel(), TinyDataModule())
    try:
        Trainer(run_name="ill", print_banner=False, **options).fit(Failing(), TinyDataModule())
    except RankFailedError as error:
        assert error.rank == 1
        assert isinstance(error.__cause__, KeyError)
        print("caught")

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["helios.testing", "torch._dynamo"])
    main()
"""

UNGUARDED = """
from helios import Trainer
from helios.testing import TinyDataModule, TinyModel

print("this is the script")
Trainer(total_steps=1, num_processes=2, print_banner=False).fit(TinyModel(), TinyDataModule())
"""

IN_A_COMMAND = """
from helios import Trainer
from helios.testing import TinyDataModule, TinyModel

class Local(TinyModel):
    pass

Trainer(total_steps=1, num_processes=2, print_banner=False).fit(Local(), TinyDataModule())
"""

WAITING = """
import sys
from pathlib import Path
from tests.distributed.parts import Trouble, fit_into

if __name__ == "__main__":
    fit_into(Trouble(Path(sys.argv[1]), "hook", 1, "wait"))
"""

# Its ranks are imported for ever.
SLOW = """
import os
import sys
import time
from pathlib import Path
from helios import Trainer
from helios.testing import TinyDataModule, TinyModel

if __name__ == "__main__":
    try:
        trainer = Trainer(total_steps=1, num_processes=2, chkpt_root=sys.argv[1], print_banner=False)
        trainer.fit(TinyModel(), TinyDataModule())
    except KeyboardInterrupt:
        print("interrupted")
else:
    (Path(sys.argv[1]) / f"rank-{os.getpid()}").touch()
    time.sleep(60)
"""


def start(arguments: Sequence[str], *, leads: bool = False) -> subprocess.Popen[str]:
    """Start an interpreter that finds these tests, and what it prints; as the leader of a process group, if asked."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipe = subprocess.PIPE
    command, group = [sys.executable, *arguments], 0 if leads else None
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, process_group=group)


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Return the exit code of an interpreter, and what it and its ranks have printed to either stream."""
    process = start(arguments)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


def write(folder: Path, script: str) -> str:
    path = folder / "script.py"
    path.write_text(script, encoding="utf-8")
    return str(path)


def test_output_appears_once(tmp_path: Path) -> None:
    """Banner, bars, log and error of a run of two ranks appear once, also in the log file."""
    code, out, err = run([write(tmp_path, TALKATIVE), str(tmp_path)])
    assert code == 0, err
    assert out.count("Helios ") == 1
    assert out.splitlines()[-1] == "caught"
    assert err.count("Training:   0%") == 1
    assert err.count("Validation:   0%") == 2
    assert err.count("4 iterations trained") == 1
    assert err.count("KeyError: 'enough'") == 2, "a headline, and the end of a traceback"
    assert err.count("Traceback") == 1
    well, ill = ((tmp_path / f"{name}.log").read_text(encoding="utf-8") for name in ("well", "ill"))
    assert [line.split(maxsplit=2)[2] for line in well.splitlines()] == [
        "INFO 4 iterations trained: all the steps asked for are done"
    ]
    assert ill.count("ERROR training failed: rank 1 (on ") == 1
    assert ill.count("in on_training_start") == 1


def test_a_script_without_a_guard_says_what_to_do(tmp_path: Path) -> None:
    """A script that trains at its top level ends soon, without ranks that start ranks; the error says why."""
    code, out, err = run([write(tmp_path, UNGUARDED)])
    assert code == 1
    assert out.splitlines() == ["this is the script"] * 3, "itself, and once for each of two ranks"
    last = err.strip().splitlines()[-1]
    assert "failed first: it ended with exit code 1 before it could begin. If the script calls fit at its top" in last
    assert "put that under `if __name__ == '__main__':`" in last
    assert "fit was called while a process that it had started was importing the script" in err


def test_a_class_of_a_command_cannot_be_found_by_ranks() -> None:
    """A class that exists only in the calling process raises an error that says where to define it."""
    code, _, err = run(["-c", IN_A_COMMAND])
    assert code == 1
    headline = next(line for line in err.splitlines() if line.startswith("helios.errors.RankFailedError"))
    assert "the arguments of fit cannot be unpickled in another process" in headline
    assert "'Local'" in headline
    assert "define their classes in a module, or in a script that can be imported" in headline


def test_ranks_do_not_outlive_the_process_that_has_started_them(tmp_path: Path) -> None:
    """When the calling process is killed, its ranks and their data loaders' workers are gone soon."""
    with start([write(tmp_path, WAITING), str(tmp_path)]) as process:
        try:
            wait_for(tmp_path / "waiting")
            processes = Trouble(tmp_path).processes()
            assert len(processes) >= 4
            assert len(survivors(processes, patience=0)) >= 4
        finally:
            process.kill()
        # Do not wait for its output, which stays open as long as any rank lives.
        began = time.monotonic()
        assert survivors(processes, patience=5) == []
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("number", "code", "out"), [(signal.SIGINT, 0, "interrupted\n"), (signal.SIGTERM, -signal.SIGTERM, "")]
)
def test_ctrl_c_while_ranks_are_imported(tmp_path: Path, number: int, code: int, out: str) -> None:
    """A signal to all processes, as from a terminal, has its usual effect, and is not reported as a failed rank."""
    with start([write(tmp_path, SLOW), str(tmp_path)], leads=True) as process:
        try:
            deadline = time.monotonic() + PATIENCE
            while len(list(tmp_path.glob("rank-*"))) < 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(process.pid, number)
            printed, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    assert (process.returncode, printed) == (code, out), errors
    assert "RankFailedError" not in errors
    assert survivors(int(mark.name.partition("-")[2]) for mark in tmp_path.glob("rank-*")) == []


def with_a_lambda(part: Any) -> Any:
    part.function = lambda: None
    return part


@pytest.mark.parametrize(
    ("which", "culprits"),
    [
        ({"model"}, "TinyModel"),
        ({"data"}, "TinyDataModule"),
        ({"plug-in"}, "plug-in 'troubled'"),
        ({"model", "plug-in"}, "TinyModel, plug-in 'troubled'"),
    ],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, which: set[str], culprits: str) -> None:
    """A part that cannot be pickled is named before any process is started, with the remedy."""
    plugin = TroubledPlugin(Trouble(tmp_path))
    parts: dict[str, Any] = {"model": TinyModel(), "data": TinyDataModule(), "plug-in": plugin}
    model, data, plugin = (with_a_lambda(part) if name in which else part for name, part in parts.items())
    trainer = make_trainer(num_processes=2)
    trainer.register_plugin(plugin)
    with pytest.raises(ConfigurationError, match=f"^{culprits} cannot be sent to .*lambda.*create .* in setup"):
        trainer.fit(model, data)
    assert Trouble(tmp_path).processes() == []
