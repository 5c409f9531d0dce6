"""Every number that a script's flags take: it works, or one line says what to give instead."""

import importlib
import sys
from typing import get_args, get_origin, get_type_hints

import pytest
import torch

import train_translation
from data.errors import DataError
from data.images.drawn_digits import drawn_digits
from data.images.drawn_shapes import drawn_shapes
from data.images.textured_shapes import textured_shapes
from data.text.phrasebook import phrasebook_splits
from training.cli import run_script
from training.errors import UsageError
from training.ranges import Range, check_ranges

pytestmark = pytest.mark.training

TINY = {
    "train_cifar": ["--speednet_widths", "8", "8", "8"],
    "train_cvae": ["--width", "16", "--iw_samples", "1"],
    "train_translation": ["--vocab_size", "200", "--beam_size", "2"],
    "train_unet": ["--width", "8", "--depth", "2", "--image_size", "16"],
}
VALUES = ("-1", "0", str(10**18), "1e30", "nan", "inf", "-inf")


def numeric_fields(script: str) -> dict[str, tuple[Range, int]]:
    """Of each numeric field its range, the first one where it takes several numbers, and how many it takes."""
    config = importlib.import_module(script).Config
    fields = {}
    for name, annotation in get_type_hints(config, include_extras=True).items():
        n_words = 1
        while get_origin(annotation) is tuple:
            kinds = get_args(annotation)
            n_words *= 1 if kinds[1:] == (...,) else len(kinds)
            annotation = kinds[0]
        ranges = [extra for extra in get_args(annotation) if isinstance(extra, Range)]
        if ranges:
            fields[name] = ranges[0], n_words
    return fields


def accepted(script: str) -> list[tuple[str, str]]:
    """The fields and values that pass the check of ranges."""
    return [
        (name, value)
        for name, (limits, _) in numeric_fields(script).items()
        for value in VALUES
        if limits.mend(read(limits, value)) is None
    ]


def read(limits: Range, value: str):
    try:
        return limits.kind(value)
    except ValueError:
        return value


@pytest.fixture
def run(fresh_accelerate, monkeypatch, tmp_path, capfd):
    """One update of a script on a few examples, without figures: run(script, *flags) -> (exit code, stderr)."""

    def few_phrases():
        train, valid, test = phrasebook_splits()
        return train[:200], valid[:8], test[:8]

    drawn = {
        "drawn_shapes": lambda: drawn_shapes(n_train=40, n_test=20),
        "drawn_digits": lambda image_size: drawn_digits(40, 20, image_size),
        "textured_shapes": lambda image_size: textured_shapes(16, 8, image_size),
    }
    figures = (
        "plot_curves",
        "write_data_figures",
        "write_result_figures",
        "write_model_summary",
        "write_pictures",
        "write_latent_map",
        "plot_active_units",
    )

    def run(script: str, *flags: str) -> tuple[int, str]:
        module = importlib.import_module(script)
        for name in figures:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *args, **kwargs: None)
        for name, draw in drawn.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, draw)
        if script == "train_translation":
            monkeypatch.setattr("data.text.corpus.phrasebook_splits", few_phrases)
            monkeypatch.setattr(module, "plot_translation_run", lambda *args: [])
            monkeypatch.setattr(module, "attention_examples", lambda *args: [])
        if script == "train_cvae":  # training a judge, and a probe of 400 batches, are no matter of numbers
            judge = lambda images, **kwargs: torch.zeros(len(images), dtype=torch.int64)  # noqa: E731
            monkeypatch.setattr(module, "find_judge", lambda *args: judge)
            monkeypatch.setattr(module, "probe_accuracy", lambda *args, **kwargs: {})
        fresh_accelerate()
        begin = [script, "demo", "--max_train_steps", "1", "--epochs", "1", "--tracker", "none"]
        monkeypatch.setattr(sys, "argv", [*begin, "--output_dir", str(tmp_path / "run"), *TINY[script], *flags])
        capfd.readouterr()
        try:
            run_script(module.main, module.RECIPES, "", user_errors=(DataError,))
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("script", TINY)
def test_what_is_out_of_range_is_refused_in_one_line(script, run):
    for name, (limits, n_words) in numeric_fields(script).items():
        annotation = get_type_hints(importlib.import_module(script).Config, include_extras=True)[name]
        nested = get_origin(annotation) is tuple and get_origin(get_args(annotation)[0]) is tuple
        for value in VALUES:
            given = read(limits, value)
            if limits.mend(given) is not None:
                given = (given,) * n_words if get_origin(annotation) is tuple else given
                with pytest.raises(UsageError, match=rf"^--{name} .*: give [^\n]*$"):
                    check_ranges({name: (given,) if nested else given}, {name: annotation})
    name, (_, n_words) = next(iter(numeric_fields(script).items()))
    code, shown = run(script, f"--{name}", *["nan"] * n_words)
    assert code == 2 and shown.startswith(f"error: --{name} nan: give ") and shown.count("\n") == 1


def check_run(run, script: str, flags: list[str]) -> None:
    code, shown = run(script, *flags)
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert code == 0 or (code == 2 and len(errors) == 1), f"{script} {' '.join(flags)}: {code}\n{shown}"
    assert "Traceback" not in shown


@pytest.mark.parametrize("script, name, value", [(s, *each) for s in TINY for each in accepted(s)])
def test_what_is_in_range_trains(script, name, value, run):
    model = []
    if script == "train_translation":  # the other model's options are refused
        small_transformer = ["--d_model", "32", "--d_ff", "32"]
        lstm = name in train_translation.LSTM_OPTIONS
        model = ["--model", "lstm", "--tied_embeddings", "none"] if lstm else small_transformer
    flags = [*model, f"--{name}", *[value] * numeric_fields(script)[name][1]]
    code, shown = run(script, *flags)
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert code == 0 or (code == 2 and len(errors) == 1), f"{script} {' '.join(flags)}: {code}\n{shown}"
    assert "Traceback" not in shown
