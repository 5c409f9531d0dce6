"""The whole GPU card in one command, with nothing to download.

    python -m benchmarks.gpu --minutes 10

Checks of single parts, whole runs, and the speed of each script from a plain fp32 loop to a compiled one, each with
what is expected of it. A task's finding is written as soon as it ends; the card stops in time, and the same command
goes on with what is missing. On a CPU, what needs a GPU says so.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.gpu.card import Options, Task
from benchmarks.gpu.task import CARD
from training.run import git_commit

SHORTEST = 10.0  # seconds below which no task is begun


@dataclass(frozen=True)
class Config:
    minutes: float = 10.0  # time that the card may take
    output: str = "runs/gpu-card"  # folder for findings.jsonl, card.txt and what each task printed
    only: tuple[str, ...] = ()  # tasks of which the names contain one of these; default: all
    jobs: int = 4  # tasks at a time, of those that are not timed
    seconds: float = 2.0  # training time of a turn
    rounds: int = 3  # turns that each variant takes
    train_files: tuple[str, ...] = ()  # corpus to train on, SOURCE TARGET; without it one that is made by code
    cifar_dir: str = ""  # CIFAR-10; without it noise of the same form
    pet_dir: str = ""  # Oxford-IIIT Pet; without it textured shapes
    tiny: bool = False  # sizes at which the tasks only show that they run
    again: bool = False  # forget earlier findings


def main(config: Config) -> None:
    deadline = time.monotonic() + 60 * config.minutes
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    findings = output / "findings.jsonl"
    if config.again:
        findings.unlink(missing_ok=True)
    done = _read(findings)
    tasks = [
        task
        for task in CARD.values()
        if task.name not in done and (not config.only or any(part in task.name for part in config.only))
    ]
    options = Options(
        folder=str((output / "made").resolve()),
        tiny=config.tiny,
        seconds=config.seconds,
        rounds=config.rounds,
        train_files=tuple(str(Path(path).resolve()) for path in config.train_files),
        cifar_dir=config.cifar_dir and str(Path(config.cifar_dir).resolve()),
        pet_dir=config.pet_dir and str(Path(config.pet_dir).resolve()),
    )
    untimed = [task for task in tasks if not task.timed]
    _work_off(untimed, config.jobs, options, output, deadline)
    _work_off([task for task in tasks if task.timed], 1, options, output, deadline)
    card = as_table(_read(findings))
    (output / "card.txt").write_text(card)
    print(f"\n{card}", end="")


def _work_off(tasks: list[Task], jobs: int, options: Options, output: Path, deadline: float) -> None:
    """Run the tasks, so many at a time, until the deadline; what runs then is ended and left for another time."""
    waiting = list(tasks)
    running: dict[str, tuple[subprocess.Popen, float]] = {}  # by task: its process, and when it began
    while waiting or running:
        left = deadline - time.monotonic()
        while waiting and len(running) < jobs and left > SHORTEST:
            task = waiting.pop(0)
            running[task.name] = (_begin(task, options, output), time.monotonic())
        if left <= SHORTEST:
            waiting.clear()
        for name, (process, began) in list(running.items()):
            if process.poll() is not None:
                _record(CARD[name], process.returncode, time.monotonic() - began, output)
            elif left <= 0:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
                print(f"{name}: no time left; the same command goes on with it", flush=True)
            else:
                continue
            del running[name]
        time.sleep(0.05)


def _begin(task: Task, options: Options, output: Path) -> subprocess.Popen:
    made = Path(options.folder) / _slug(task.name)
    shutil.rmtree(made, ignore_errors=True)
    result = output / f"{_slug(task.name)}.json"
    result.unlink(missing_ok=True)
    given = json.dumps({**asdict(options), "folder": str(made)})
    with (output / f"{_slug(task.name)}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.task", task.name, given, str(result)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _record(task: Task, code: int, seconds: float, output: Path) -> None:
    """Append the task's finding to findings.jsonl, and print it."""
    result = output / f"{_slug(task.name)}.json"
    if result.is_file():
        finding = json.loads(result.read_text())
        result.unlink()
    else:
        finding = {
            "found": f"ended with exit code {code}: see {_slug(task.name)}.log",
            "holds": False,
            "numbers": {},
        }
    line = {
        "task": task.name,
        "expected": task.expected,
        **finding,
        "seconds": round(seconds, 1),
        "device": _device(),
        "torch": torch.__version__,
        "commit": git_commit(),
    }
    with (output / "findings.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{_verdict(line):8}{task.name}: {finding['found']} ({seconds:.0f} s)", flush=True)


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _read(findings: Path) -> dict[str, dict[str, Any]]:
    """By task, the latest finding of each."""
    if not findings.is_file():
        return {}
    lines = [json.loads(line) for line in findings.read_text().splitlines()]
    return {line["task"]: line for line in lines}


def _verdict(finding: dict[str, Any]) -> str:
    return {True: "holds", False: "FAILS", None: "-"}[finding["holds"]]


def as_table(findings: dict[str, dict[str, Any]]) -> str:
    """The card as text: a block for each finding, in the card's order, and the devices on which they were found."""
    devices = {(finding["device"], finding["torch"]) for finding in findings.values()}
    lines = [", ".join(sorted(f"{device}, torch {version}" for device, version in devices)), ""]
    for name in CARD:
        if name not in findings:
            continue
        finding = findings[name]
        lines.append(f"{_verdict(finding):8}{name}")
        for label in ("expected", "found"):
            text = f"{label}: {finding[label]}"
            lines += textwrap.wrap(text, 110, initial_indent=" " * 8, subsequent_indent=" " * 18)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True, description=__doc__))
