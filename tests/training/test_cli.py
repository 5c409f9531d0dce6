import signal
import sys
from dataclasses import dataclass

import pytest

from training.cli import parse_config, run_script
from training.errors import TrainingDiverged, UsageError


@dataclass(frozen=True)
class Config:
    recipe: str  # name of the recipe
    max_train_steps: int = 7  # updates in all
    lr: float = 0.1  # peak rate
    compile: bool = False  # compile the model


RECIPES = {"demo": ("a small one", Config("demo")), "large": ("a large one", Config("large", lr=0.5))}


def test_recipes_flags_and_both_spellings():
    assert parse_config(RECIPES, "", ["large"]) == RECIPES["large"][1]
    for flag in ("--max_train_steps", "--max-train-steps"):
        assert parse_config(RECIPES, "", ["demo", flag, "3"]).max_train_steps == 3
    assert parse_config(RECIPES, "", ["demo", "--compile"]).compile


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
        (["demo", "--lr", "x"], "--lr"),
        ([], ""),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_was_meant(capsys, args, named):
    with pytest.raises(SystemExit) as end:
        parse_config(RECIPES, "", args)
    assert end.value.code == 2
    assert named.replace("-", "_") in capsys.readouterr().err.replace("-", "_")


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


def test_sigterm_before_the_loop_ends_with_143(fresh_accelerate, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "demo"])
    with pytest.raises(SystemExit) as end:
        run_script(lambda config: signal.raise_signal(signal.SIGTERM), RECIPES, "")
    assert end.value.code == 143
