"""Then and now: each variant is a run that its script takes, and trains while it is its turn."""

import importlib
import json
import multiprocessing
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.then_and_now import TASKS, WARM_UP, Config, Run, compare, main, parse_task, table, train
from training.cli import parse_config
from training.run import RunConfig

CONFIG = Config(tasks=("resnet",), output="out")


@pytest.mark.parametrize("name", TASKS)
def test_each_variant_is_taken_by_its_script_and_today_s_is_the_recipe_of_that_name(name):
    task = TASKS[name]
    recipes = importlib.import_module(task.script).RECIPES
    configs = {v: parse_config(recipes, "", variant.flags.split()) for v, variant in task.variants.items()}
    then = configs["then"].recipe
    assert then.endswith("-course") or (name, then) == ("de-en", "de-en-lstm")
    assert name in configs["now"].recipe and not configs["now"].recipe.endswith("-course")
    assert not task.variants["then"].mixed or name == "opus-en-fr"
    assert task.variants["now"].mixed


def test_data_of_a_task():
    assert parse_task("opus-en-it=a.en,a.it") == ("opus-en-it", ("--train_files", "a.en", "a.it"))
    assert parse_task("resnet=cifar10") == ("resnet", ("--data_dir", "cifar10"))
    assert parse_task("mnist") == ("mnist", ())


@pytest.mark.parametrize("task, mend", [("resnet9", "give one of opus-en-it"), ("de-en=a", "de-en=SOURCE,TARGET")])
def test_a_task_that_there_is_not_ends_with_2_and_one_line(task, mend, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--tasks", task, "--output", str(tmp_path / "out")])
    (shown,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and shown.startswith("error: ") and mend in shown


@dataclass(frozen=True)
class ScriptConfig(RunConfig):
    max_train_steps: int = 0


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that an update moves on by one second."""
    now = [0.0]
    monkeypatch.setattr("benchmarks.then_and_now.time.perf_counter", lambda: now[0])
    return now


@pytest.fixture
def script(monkeypatch, clock) -> str:
    """A script whose run writes what the benchmark reads of it."""
    module = ModuleType("script_of_the_test")

    def train_update(step: int) -> None:
        clock[0] += 1.0

    def run(config: ScriptConfig) -> None:
        for step in range(config.max_train_steps):
            module.train_update(step)
        clock[0] += 100.0  # a validation
        folder = Path(config.output_dir)
        lines = [
            {"epoch": 0.5, "train/loss": 3.0},
            {"epoch": 1.5, "train/loss": 2.0},
            {"epoch": 2.0, "valid/loss": 1.0},
        ]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        (folder / "summary.json").write_text(
            json.dumps({"best/valid/loss": 1.0, "best/step": 3, "git_commit": "abc"})
        )

    module.train_update, module.main = train_update, run
    module.RECIPES = {"demo": ("", ScriptConfig(recipe="demo"))}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    return module.__name__


@pytest.mark.parametrize("only_timed", [False, True])
def test_a_worker_trains_for_its_turns_and_reports_at_the_end(script, only_timed):
    ours, theirs = multiprocessing.Pipe()
    run = Run(script, ("demo",), "no", updates=7, only_timed=only_timed)
    worker = threading.Thread(target=train, args=(theirs, CONFIG, run))
    worker.start()
    said = [ours.recv()]
    while said[-1] is None:
        ours.send(3.0)
        said.append(ours.recv())
    worker.join()
    assert said[:-1] == [None] * 3  # ready, and after two turns of three updates
    report = said[-1]
    n = 7 - WARM_UP if only_timed else 7
    assert (report["updates"], report["seconds"]) == (n, n)
    if not only_timed:
        assert (report["epochs"], report["train_loss"], report["valid"]) == (2.0, 2.0, {"loss": 1.0})


def test_each_variant_gets_the_updates_that_fill_the_minutes_by_the_longer_of_two_short_runs(monkeypatch):
    rounds = []

    def take_turns(work, config, runs, seconds):
        rounds.append({variant: (run.updates, run.only_timed) for variant, run in runs.items()})
        of_update = 0.01 if len(rounds) == 1 else 0.5  # the first run is too short to tell
        return {
            v: {"seconds": of_update * run.updates, "updates": run.updates, "epochs": 2} for v, run in runs.items()
        }

    monkeypatch.setattr("benchmarks.then_and_now.take_turns_to_the_end", take_turns)
    reports = compare(Config(("resnet",), "out", minutes=3), "resnet", ())
    assert rounds[0] == {"then": (12 + WARM_UP, True), "now": (12 + WARM_UP, True)}
    assert rounds[1] == {"then": (2000, True), "now": (2000, True)}  # 20 s at 0.01 s
    assert rounds[2] == {"then": (360, False), "now": (360, False)}  # 180 s at 0.5 s
    assert reports["now"]["epoch_seconds"] == 90


def test_the_table_compares_with_the_first():
    valid = {"accuracy": 0.9, "loss": 0.3}
    reports = {
        "then": {"epoch_seconds": 60.0, "seconds": 120.0, "epochs": 2.0, "valid": valid},
        "now": {"epoch_seconds": 20.0, "seconds": 121.0, "epochs": 6.05, "valid": valid},
    }
    *_, then, now = table("resnet", reports).splitlines()
    assert then.split() == ["then", "60.0", "1.00", "2.0", "2.00", "0.9", "0.3"]
    assert now.split()[:3] == ["now", "20.0", "3.00"]
