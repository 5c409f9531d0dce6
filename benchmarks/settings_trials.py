"""Trials of settings: runs of a script under named flags, some at a time, and what their validation says of them.

    trials = over_seeds([Trial("baseline", ("resnet",)), Trial("lookahead", ("resnet", "--lookahead", "5"))], 3)
    lines = run_trials("train_cifar.py", trials, minutes=30, jobs=2, output=Path("settings.jsonl"))
    print(comparison(lines, "accuracy", higher_is_better=True))

A line of the output is a JSON object: the trial's name and flags, the exit code, the metrics of its best
validation, the seconds and the device. It is written as the trial ends, and holds nothing of the test split. A
trial whose line is there is not made again, unless it failed; one that was cut by the end of the time goes on from
its checkpoint.
"""

import contextlib
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tabulate import tabulate

from training.cores import usable_cores

ROOT = Path(__file__).resolve().parents[1]
SAVES_WITHIN = 120.0  # seconds that a run has to save after SIGTERM, before it is killed
LOOKS_EVERY = 0.2  # seconds
DIVERGED = 1  # the exit code of a run that would end likewise another time
OF_THE_RUN = ("train_seconds", "total_seconds", "n_parameters", "peak_memory_mb", "device", "mixed_precision")

Precision = Literal["no", "fp16", "bf16"]


@dataclass(frozen=True)
class Trial:
    """A run to be made: its name in the results, and what follows the script on its command line."""

    name: str
    flags: tuple[str, ...]  # the recipe first

    def folder_name(self, precision: str) -> str:
        """Of its run: no two trials of a script have the same."""
        settings = json.dumps([self.flags, precision])
        readable = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")
        return f"{readable}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def over_seeds(trials: Sequence[Trial], n_seeds: int) -> list[Trial]:
    """Each trial with each of the seeds 0, 1, ..: all of a seed before those of the next."""
    return [replace(t, flags=(*t.flags, "--seed", str(seed))) for seed in range(n_seeds) for t in trials]


def run_trials(
    script: str, trials: Sequence[Trial], *, minutes: float, jobs: int, output: Path, precision: Precision = "no"
) -> list[dict[str, Any]]:
    """Make the trials that `output` (JSON lines) lacks, `jobs` at a time. Returns the lines of those that are made.

    Each is a process of its own, with an equal share of the cores, of `script` (as "train_unet.py") in mixed
    `precision`. Runs are written in the folder beside `output` that has its name without the ending. Once
    `minutes` are over none is begun, and those that train save and end, within SAVES_WITHIN; so they do when this
    process is interrupted or gets SIGTERM.
    """
    ends_at = time.monotonic() + 60 * minutes
    runs = output.with_suffix("")
    runs.mkdir(parents=True, exist_ok=True)
    done = {_key(line) for line in read_lines(output) if line["exit_code"] in (0, DIVERGED)}
    wanted = {(trial.name, script, trial.flags, precision): trial for trial in trials}
    waiting = [trial for key, trial in wanted.items() if key not in done]
    running: list[_Running] = []
    with _sigterm_exits():
        try:
            while (running or waiting) and time.monotonic() < ends_at:
                while waiting and len(running) < jobs:
                    running.append(_Running(script, waiting.pop(0), runs, precision, jobs))
                time.sleep(LOOKS_EVERY)
                for run in [run for run in running if run.exit_code is not None]:
                    running.remove(run)
                    _append(output, run.line())
        finally:
            for run in running:
                run.ask_to_end()
            for run in running:
                run.wait_to_end()
                if run.exit_code == 0:  # it was about to end
                    _append(output, run.line())
    found = {_key(line): line for line in read_lines(output)}
    missing = [" ".join((trial.name, *trial.flags)) for key, trial in wanted.items() if key not in found]
    if missing:
        print("the time is up; the same command goes on with", *missing, sep="\n  ", file=sys.stderr, flush=True)
    return [found[key] for key in wanted if key in found]


def read_lines(output: Path) -> list[dict[str, Any]]:
    """The lines of trials, the last of each; none where there is no such file."""
    if not output.exists():
        return []
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return list({_key(line): line for line in lines}.values())


class Score(NamedTuple):
    """What the runs of a trial, one a seed, say of it; None where no run has ended well."""

    name: str
    mean: float | None  # of the metric
    spread: float | None  # its standard deviation, of two runs and more
    runs: int
    failed: int  # that diverged or could not be made
    train_seconds: float | None


def scores(lines: Sequence[dict[str, Any]], metric: str, *, higher_is_better: bool) -> list[Score]:
    """The trials, the best first by the mean of a validation metric over their seeds, those without one last."""
    of_name: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        of_name[line["name"]].append(line)
    found, missing = [], []
    for name, of_seeds in of_name.items():
        finished = [line for line in of_seeds if line["exit_code"] == 0]
        failed = len(of_seeds) - len(finished)
        if not finished:
            missing.append(Score(name, None, None, len(of_seeds), failed, None))
            continue
        values = [line["valid"][metric] for line in finished]
        spread = statistics.stdev(values) if len(values) > 1 else None
        seconds = statistics.mean(line["train_seconds"] for line in finished)
        found.append(Score(name, statistics.mean(values), spread, len(of_seeds), failed, seconds))
    found.sort(key=lambda score: score.mean or 0.0, reverse=higher_is_better)
    return found + missing


def comparison(lines: Sequence[dict[str, Any]], metric: str, *, higher_is_better: bool) -> str:
    """A table of `scores`."""
    headers = ("trial", f"valid/{metric}", "+-", "runs", "failed", "train s")
    found = scores(lines, metric, higher_is_better=higher_is_better)
    return tabulate(found, headers, floatfmt=("", ".4f", ".4f", "", "", ".0f"))


def _key(line: dict[str, Any]) -> tuple[str, str, tuple[str, ...], str]:
    return line["name"], line["script"], tuple(line["flags"]), line["precision"]


def _append(output: Path, line: dict[str, Any]) -> None:
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    outcome = line.get("error") or ", ".join(f"{name} {value:.4g}" for name, value in line["valid"].items())
    print(f"{line['name']}: {outcome} ({line['seconds']:.0f} s)", flush=True)


class _Running:
    """A trial's process. It has its own group, so that a Ctrl-C is ours alone."""

    def __init__(self, script: str, trial: Trial, runs: Path, precision: Precision, jobs: int):
        self.script, self.trial, self.precision = script, trial, precision
        self.folder = runs / trial.folder_name(precision)
        self.log = self.folder.with_suffix(".log")
        self._started = time.monotonic()
        common = ("--output_dir", str(self.folder), "--resume", "latest", "--checkpoints_total_limit", "1")
        threads = max(1, usable_cores() // jobs)
        environment = {"OMP_NUM_THREADS": str(threads), "ACCELERATE_MIXED_PRECISION": precision}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(ROOT / script), *trial.flags, *common, "--tracker", "none"],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def ask_to_end(self) -> None:
        if self.exit_code is None:
            self._process.terminate()

    def wait_to_end(self) -> None:
        try:
            self._process.wait(SAVES_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def line(self) -> dict[str, Any]:
        """What is written of a trial that has ended. A time of several sittings is `train_seconds` alone."""
        line: dict[str, Any] = {
            "name": self.trial.name,
            "script": self.script,
            "flags": list(self.trial.flags),
            "precision": self.precision,
            "exit_code": self.exit_code,
            "seconds": round(time.monotonic() - self._started, 1),
        }
        if self.exit_code != 0:
            return {**line, "valid": {}, "error": self._last_words()}
        summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        # Of the best validation, and of the weights that it chose.
        names = {name: name.removeprefix("best/").removeprefix("valid/") for name in summary if "valid/" in name}
        valid = {short: summary[name] for name, short in names.items()}
        line |= {"valid": valid, "step": summary.get("best/step"), "git_commit": summary.get("git_commit")}
        return line | {name: summary[name] for name in OF_THE_RUN if name in summary}

    def _last_words(self) -> str:
        said = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        return (errors or said or [""])[-1]


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM, which `timeout` sends, ends this process as an exception does: the trials are ended first."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
