"""What the course projects' recipes reach in a time, and what today's reach in the same, side by side in one run.

    python -m benchmarks.then_and_now --tasks opus-en-it=corpus.en,corpus.it resnet=cifar10 mp-tr-bce=pets \
        --minutes 10 --output then-and-now

A task is a recipe of today, with its data behind `=`: two files, or a folder. Its variants train in turns
(benchmarks/turns.py), each with a schedule of as many updates as `--minutes` hold, by two short runs before.
Seconds are those of the updates alone; scores are of the validation split. The losses of two recipes are not to be
compared where their tokens are not the same, as of words and of BPE. The table goes to <output>.txt, its numbers to
<output>.json.
"""

import contextlib
import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.settings_trials import Precision
from benchmarks.turns import take_turns_to_the_end
from training.cli import call_with_config, run_tool
from training.cores import usable_cores
from training.errors import UsageError
from training.ranges import PositiveInt, Weight

WARM_UP = 2  # updates of a short run that are not counted
SECOND_SHORT_RUN = 20.0  # seconds: a dozen small updates say too little


@dataclass(frozen=True)
class Variant:
    """A run of a script: what follows its name on the command line, the recipe first."""

    flags: str
    mixed: bool = False  # in mixed precision


@dataclass(frozen=True)
class Task:
    """What is trained then and now, and which numbers of the validation split tell how well."""

    script: str
    score: str
    loss: str
    variants: Mapping[str, Variant]


def of_pictures(script: str, recipe: str, score: str, loss: str) -> Task:
    """A recipe and the course's of that name, each in fp32 then, in mixed precision now."""
    return Task(script, score, loss, {"then": Variant(f"{recipe}-course"), "now": Variant(recipe, mixed=True)})


ONE_CYCLE = "--batching sorted --lr 1e-3 --pct_start 0.3 --div_factor 100 --final_div_factor 100"
TASKS = {
    "opus-en-it": Task(
        "train_translation",
        "bleu",
        "nll",
        {
            "then": Variant("opus-en-it-course"),
            "then, sorted batches": Variant("opus-en-it-course --batching sorted"),
            "then, mixed precision, one-cycle": Variant(f"opus-en-it-course {ONE_CYCLE}", mixed=True),
            "now": Variant("opus-en-it", mixed=True),
            "now, for a small corpus": Variant("small-corpus --languages en it", mixed=True),
        },
    ),
    "opus-en-fr": Task(
        "train_translation",
        "bleu",
        "nll",
        {"then": Variant("opus-en-fr-course", mixed=True), "now": Variant("opus-en-fr", mixed=True)},
    ),
    "de-en": Task(
        "train_translation",
        "bleu",
        "nll",
        {
            "then": Variant("de-en-lstm"),
            "now": Variant("de-en-lstm-strong", mixed=True),
            "now, Transformer": Variant("de-en", mixed=True),
        },
    ),
    "resnet": of_pictures("train_cifar", "resnet", "accuracy", "loss"),
    "ultimus": of_pictures("train_cifar", "ultimus", "accuracy", "loss"),
    "mp-tr-bce": of_pictures("train_unet", "mp-tr-bce", "dice", "loss"),
    "mp-tr-dice": of_pictures("train_unet", "mp-tr-dice", "dice", "loss"),
    "strconv-tr-bce": of_pictures("train_unet", "strconv-tr-bce", "dice", "loss"),
    "strconv-ups-dice": of_pictures("train_unet", "strconv-ups-dice", "dice", "loss"),
    "mnist": of_pictures("train_cvae", "mnist", "elbo", "bits_per_dim"),
    "cifar10": of_pictures("train_cvae", "cifar10", "elbo", "bits_per_dim"),
}
FLAGS = {"train_translation": "--valid_sentences 500", "train_cvae": "--judge none --iw_samples 0"}


@dataclass(frozen=True)
class Config:
    tasks: tuple[str, ...]  # TASK=SOURCE,TARGET of translation, TASK=FOLDER of pictures
    output: str  # the table goes to OUTPUT.txt, its numbers to OUTPUT.json
    minutes: Weight = 10.0  # of training that each variant has
    seconds: Weight = 20.0  # of a turn
    precision: Precision = "bf16"  # mixed precision, of the variants that have it
    short_run: PositiveInt = 12  # updates of the first run that is timed before
    flags: str = ""  # further ones for each run, behind an equals sign: --flags="--d_model 128 --n_heads 4"


@dataclass(frozen=True)
class Run:
    """A variant as a worker trains it."""

    script: str
    flags: tuple[str, ...]
    precision: str
    updates: int
    only_timed: bool  # ends after the updates, without a validation


class _Timed(Exception):
    """Ends a run whose updates were to be timed."""


def train(connection: Connection, config: Config, run: Run) -> None:
    """The worker: trains while it is its turn. Reports the seconds of its updates, and what the run has written."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = run.precision  # before Accelerate is imported: it is read once
    import torch

    from training.cli import parse_config
    from training.run_folder import release_folders

    torch.set_num_threads(usable_cores())
    script: Any = importlib.import_module(run.script)
    seconds: list[float] = []
    script.train_update = _in_turns(script.train_update, connection, run, seconds)
    with tempfile.TemporaryDirectory() as folder:
        common = (
            "--max_train_steps",
            str(run.updates),
            "--output_dir",
            folder,
            "--tracker",
            "none",
            "--no_final_test",
        )
        report: dict[str, Any] = {}
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                script.main(parse_config(script.RECIPES, "", [*run.flags, *common]))
            report = _written(Path(folder))
        except _Timed:
            seconds = seconds[WARM_UP:]
        finally:
            release_folders()
        connection.send({**report, "seconds": sum(seconds), "updates": len(seconds), "device": _device()})


def _in_turns(train_update: Callable, connection: Connection, run: Run, seconds: list[float]) -> Callable:
    """`train_update` that notes its `seconds`, and waits for the next turn where this one is over."""
    import torch

    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    left = 0.0

    def update(*arguments: Any) -> Any:
        nonlocal left
        if left <= 0:
            connection.send(None)  # ready, or: the turn is over
            left = connection.recv()
        started = time.perf_counter()
        done = train_update(*arguments)
        synchronize()
        seconds.append(time.perf_counter() - started)
        left -= seconds[-1]
        if run.only_timed and len(seconds) == run.updates:
            raise _Timed
        return done

    return update


def _written(folder: Path) -> dict[str, Any]:
    """The best validation of a run, its epochs, and the last loss that it logged of training."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    best = {name.removeprefix("best/valid/"): value for name, value in summary.items() if "best/valid/" in name}
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    return {
        "valid": best,
        "epochs": lines[-1]["epoch"],
        "train_loss": losses[-1],
        "git_commit": summary["git_commit"],
    }


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({torch.get_num_threads()} threads)"


def parse_task(text: str) -> tuple[str, tuple[str, ...]]:
    """ "resnet=cifar10" -> its name and the flags of its data. Raises UsageError."""
    name, _, data = text.partition("=")
    if name not in TASKS:
        raise UsageError(f"--tasks {name}: give one of {', '.join(TASKS)}")
    if not data:
        return name, ()
    if TASKS[name].script != "train_translation":
        return name, ("--data_dir", data)
    if data.count(",") != 1:
        raise UsageError(f"--tasks {text}: give the corpus as {name}=SOURCE,TARGET")
    return name, ("--train_files", *data.split(","))


def compare(config: Config, name: str, data: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Train the variants of a task in turns; what each reports, with the seconds of an epoch."""
    task = TASKS[name]
    runs = {
        variant: Run(
            task.script,
            (*asked.flags.split(), *data, *FLAGS.get(task.script, "").split(), *config.flags.split()),
            config.precision if asked.mixed else "no",
            updates=config.short_run + WARM_UP,
            only_timed=True,
        )
        for variant, asked in task.variants.items()
    }
    reports = take_turns_to_the_end(train, config, runs, config.seconds)
    for seconds, only_timed in ((SECOND_SHORT_RUN, True), (60 * config.minutes, False)):
        for variant, run in runs.items():
            of_update = reports[variant]["seconds"] / reports[variant]["updates"]
            least = run.updates if only_timed else 1
            runs[variant] = replace(run, updates=max(round(seconds / of_update), least), only_timed=only_timed)
        reports = take_turns_to_the_end(train, config, runs, config.seconds)
    return {v: report | {"epoch_seconds": report["seconds"] / report["epochs"]} for v, report in reports.items()}


def table(name: str, reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The variants of a task: how long an epoch takes, and how far they come in about the same time."""
    task = TASKS[name]
    first = next(iter(reports.values()))["epoch_seconds"]
    rows = [
        (
            variant,
            report["epoch_seconds"],
            first / report["epoch_seconds"],
            report["seconds"] / 60,
            report["epochs"],
            report["valid"][task.score],
            report["valid"][task.loss],
        )
        for variant, report in reports.items()
    ]
    headers = (
        name,
        "s an epoch",
        "times as fast",
        "minutes",
        "epochs",
        f"valid/{task.score}",
        f"valid/{task.loss}",
    )
    return tabulate(rows, headers, floatfmt=("", ".1f", ".2f", ".1f", ".2f", ".4g", ".4g"))


def report(config: Config) -> None:
    """Compare each task and write what is there after each."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    tables = []
    for name, data in [parse_task(text) for text in config.tasks]:
        found[name] = compare(config, name, data)
        tables.append(table(name, found[name]))
        print(tables[-1], end="\n\n", flush=True)
        Path(f"{config.output}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        Path(f"{config.output}.txt").write_text("\n\n".join(tables) + "\n", encoding="utf-8")


def main(args: list[str] | None = None) -> None:
    """Run from the command line; exits with code 2, after one line, where a task cannot be compared."""
    call_with_config(report, Config, __doc__ or "", args)


if __name__ == "__main__":
    run_tool(main)
