import errno
import signal
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from training.cli import PathFlag, call_with_flags, parse_config, run_script
from training.errors import TrainingDiverged, UsageError
from training.ranges import Count, LearningRate


@dataclass(frozen=True)
class Config:
    recipe: str  # name of the recipe
    max_train_steps: Count = 7  # updates in all
    lr: LearningRate = 0.1  # peak rate
    batch_size: int = 2  # examples
    compile: bool = False  # compile the model
    output_dir: PathFlag = ""  # where it is written
    train_files: tuple[PathFlag, ...] = ()  # what is read


RECIPES = {"demo": ("a small one", Config("demo")), "large": ("a large one", Config("large", lr=0.5))}


def test_recipes_flags_and_both_spellings():
    assert parse_config(RECIPES, "", ["large"]) == RECIPES["large"][1]
    for flag in ("--max_train_steps", "--max-train-steps"):
        assert parse_config(RECIPES, "", ["demo", flag, "3"]).max_train_steps == 3
    assert parse_config(RECIPES, "", ["demo", "--compile"]).compile


def test_booleans_and_lists_are_understood_as_a_sweep_writes_them():
    def parsed(*args):
        return parse_config(RECIPES, "", ["demo", *args])

    assert parsed("--compile=True").compile and not parsed("--compile", "--compile=False").compile
    assert parsed("--train-files=['a b', 'c']").train_files == ("a b", "c")
    assert parsed("--train_files=[]").train_files == () and parsed("--train_files=[x").train_files == ("[x",)
    assert parsed("--output_dir=True").output_dir == "True"  # a path, and not yes


def test_help_lists_the_recipes_with_a_line_each(capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(RECIPES, "What it does.", ["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert all(text in shown for text in ("What it does.", "demo", "a small one", "large", "a large one"))
    with pytest.raises(SystemExit):
        parse_config(RECIPES, "", ["demo", "--help"])
    assert "updates in all" in capsys.readouterr().out  # the comment behind the field


@pytest.mark.parametrize(
    "args, named",
    [
        (["demo", "--max_train_step", "3"], "--max-train-steps"),
        (["dmo"], "demo"),
        (["demo", "--compile", "x"], "x"),
        (["demo", "--lr"], "--lr"),
        ([], "demo, large"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_was_meant(capsys, args, named):
    with pytest.raises(SystemExit) as end:
        parse_config(RECIPES, "", args)
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert named.replace("-", "_") in shown.replace("-", "_")
    assert shown.startswith("error: ") and shown.count("\n") == 1


@pytest.mark.parametrize("lr", ["0", "-1", "nan", "inf", "x", "1e30"])
def test_a_number_out_of_range_ends_with_2_after_one_line(monkeypatch, capsys, lr):
    monkeypatch.setattr(sys, "argv", ["script", "demo", "--lr", lr])
    with pytest.raises(SystemExit) as end:
        run_script(lambda config: None, RECIPES, "")
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --lr ") and ": give " in shown and shown.count("\n") == 1


def test_tilde_is_the_home_folder_wherever_a_path_is_given(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    args = ["demo", "--output_dir=~/runs/a", "--train_files", "~/a.en", "b~/a.it"]
    config = parse_config(RECIPES, "", args)
    assert config.output_dir == "/home/ada/runs/a" and config.train_files == ("/home/ada/a.en", "b~/a.it")


def test_a_tool_gets_its_arguments_checked_and_expanded(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/ada")
    called = []

    def main(run: PathFlag, n: Count = 1) -> None:
        called.append((run, n))

    call_with_flags(main, ["--run", "~/runs/a", "--n", "3"])
    assert called == [("/home/ada/runs/a", 3)]
    for args in (["--run", "a", "--n", "-3"], ["--run", "a", "--n", "nan"], ["--run"], ["--m", "3"]):
        with pytest.raises(SystemExit) as end:
            call_with_flags(main, args)
        assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert len(called) == 1


@pytest.mark.parametrize(
    "error, code",
    [
        (UsageError("bad flag"), 2),
        (TrainingDiverged("NaN"), 1),
        (KeyError("bad data"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_exit_codes_and_one_line(fresh_accelerate, monkeypatch, capsys, error, code):
    monkeypatch.setattr(sys, "argv", ["script", "demo"])

    def main(config):
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main, RECIPES, "", user_errors=(KeyError,))
    assert end.value.code == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == (code != 130) and "Traceback" not in shown


def test_unknown_errors_are_not_swallowed(fresh_accelerate, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "demo"])
    with pytest.raises(ZeroDivisionError):
        run_script(lambda config: 1 / 0, RECIPES, "")


def test_a_full_disk_wherever_it_shows_is_one_line(fresh_accelerate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "demo"])

    def main(config):
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` raises it: without a name

    with pytest.raises(SystemExit) as end:
        run_script(main, RECIPES, "")
    shown = capsys.readouterr().err
    assert end.value.code == 2 and shown.count("\n") == 1 and "free some space" in shown


def test_sigterm_before_the_loop_ends_with_143(fresh_accelerate, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "demo"])
    with pytest.raises(SystemExit) as end:
        run_script(lambda config: signal.raise_signal(signal.SIGTERM), RECIPES, "")
    assert end.value.code == 143


@pytest.mark.parametrize(
    "run_out",
    [
        lambda: torch.empty(2**50, dtype=torch.uint8),
        lambda: np.ones(2**50, np.uint8),
    ],
    ids=["torch", "numpy"],
)
def test_running_out_of_memory_ends_with_2_and_the_mend(fresh_accelerate, monkeypatch, capsys, run_out):
    monkeypatch.setattr(sys, "argv", ["script", "demo"])
    with pytest.raises(SystemExit) as end:
        run_script(lambda config: run_out(), RECIPES, "")
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert "out of memory" in shown and "lower --batch_size" in shown and shown.count("\n") == 1
