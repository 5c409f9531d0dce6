"""Every numeric flag has its range, and every file or folder its `~`."""

import importlib
import math
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from training.cli import PathFlag
from training.errors import UsageError
from training.ranges import (
    Count,
    Epochs,
    LearningRate,
    Range,
    Share,
    ShareBelowOne,
    Width,
    check_config,
    check_ranges,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [importlib.import_module(path.stem) for path in sorted(ROOT.glob("train_*.py"))]
TOOLS = [importlib.import_module(f"tools.{path.stem}") for path in sorted((ROOT / "tools").glob("[a-z]*.py"))]
CONFIGS = {module.__name__: module.Config for module in [*SCRIPTS, *TOOLS] if "Config" in vars(module)}
PLACES = CONFIGS | {tool.__name__: tool.main for tool in TOOLS if "main" in vars(tool) and tool not in CONFIGS}
PATH_NAMES = ("dir", "files", "file", "output", "run", "runs", "resume", "judge", "log")
NAMED_PATHS = {("tools.compare", "runs")}  # PATH or NAME=PATH: expanded where it is cut


def flags():
    for place, annotated in PLACES.items():
        for name, annotation in get_type_hints(annotated, include_extras=True).items():
            if name not in ("return", "args"):
                yield pytest.param(place, name, annotation, id=f"{place}.{name}")


def plain_numbers(annotation) -> list[type]:
    """The numeric types in an annotation that have no range, however deep."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return [] if any(isinstance(extra, Range) for extra in metadata) else plain_numbers(inner)
    if annotation in (int, float):
        return [annotation]
    is_choice = get_origin(annotation) is not tuple and all(isinstance(arg, int) for arg in get_args(annotation))
    return [] if is_choice else [kind for inner in get_args(annotation) for kind in plain_numbers(inner)]


def expands_tilde(annotation) -> bool:
    expands = get_args(PathFlag)[1]
    return any(part is expands or expands_tilde(part) for part in get_args(annotation))


@pytest.mark.parametrize("place, name, annotation", list(flags()))
def test_every_numeric_flag_has_a_range_and_every_path_its_tilde(place, name, annotation):
    assert not plain_numbers(annotation), (
        f"{place}: annotate {name} with a type of training/ranges.py, such as Count or Share: a number without a "
        "range takes -1, nan and 10**18"
    )
    if name.split("_")[-1] in PATH_NAMES and (place, name) not in NAMED_PATHS and annotation is not bool:
        assert expands_tilde(annotation), f"{place}: annotate {name} with training.cli.PathFlag, which expands ~"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_recipes_are_within_the_ranges(script):
    for _, config in script.RECIPES.values():
        check_config(config)


@pytest.mark.parametrize(
    "annotation, value, mend",
    [
        (Epochs, 0, "give at least 1"),
        (Epochs, 10**18, "give at most 1,000,000"),
        (Epochs, "1e3", "give a whole number, at least 1 and at most 1,000,000"),
        (Count, -1, "give at least 0"),
        (LearningRate, 0.0, "give more than 0"),
        (LearningRate, math.inf, "give at most 100"),
        (LearningRate, -math.inf, "give more than 0"),
        (LearningRate, math.nan, "give a number, more than 0 and at most 100"),
        (ShareBelowOne, 1.0, "give less than 1"),
        (tuple[Width, ...], (8, 0), "give at least 1"),
        (tuple[tuple[Width, Width], ...], ((8, 8), (8, "x")), "give a whole number"),
        (Share | None, 2.0, "give at most 1"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_mend(annotation, value, mend):
    with pytest.raises(UsageError, match=rf"^--flag .*: {mend}"):
        check_ranges({"flag": value}, {"flag": annotation})


@pytest.mark.parametrize(
    "annotation, value",
    [
        (Epochs, 1),
        (Count, 0),
        (LearningRate, 1e-12),
        (Share, 1),
        (ShareBelowOne, 0.0),
        (Share | None, None),
        (tuple[Width, ...], ()),
        (str, "nan"),
    ],
)
def test_what_is_in_range_passes(annotation, value):
    check_ranges({"flag": value}, {"flag": annotation})
