"""Finding the runs to compare: folders of runs, groups of them, records of results/, named as people name them."""

import functools
import glob
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from training.errors import UsageError
from training.finished_run import FLAG_OF_SCRIPT
from training.metrics import read_metrics
from training.run_folder import is_owned

DEFAULT_GROUP = "runs"
NOT_ENTERED = {"checkpoints", "figures", "profile", "translations", "wandb"}  # folders inside of a run
FIELDS_OF_A_RECORD = {"recipe", "command", "commit", "hardware", "seeds", "runs", "numbers"}
Status = Literal["finished", "running", "crashed or stopped"]


@dataclass(frozen=True)
class Run:
    """One run, of one seed.

    `settings` is its config.json; of a record, which keeps none, the flags of its command. `summary` is empty until
    the run has ended. `rows` are the lines of metrics.jsonl, merged by step. `damage` says in a line what of it
    could not be read.
    """

    name: str
    path: Path
    script: str  # "cifar", ..; "" where it cannot be told
    status: Status
    settings: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    damage: str = ""
    only_flags_known: bool = False

    @property
    def seed(self) -> int | None:
        return self.settings.get("seed")


@dataclass(frozen=True)
class Found:
    """What the arguments led to: the runs, and files that are no records of runs."""

    runs: list[Run]
    left_out: list[Path]

    @property
    def warnings(self) -> list[str]:
        """Lines that say what was left out, and what of the runs could not be read."""
        names = [str(path) for path in self.left_out]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        left_out = [f"no records of runs, and left out: {shown}"] if names else []
        return [*left_out, *dict.fromkeys(run.damage for run in self.runs if run.damage)]


def find_runs(arguments: Sequence[str]) -> Found:
    """The runs that `arguments` name: folders of runs or of groups, globs, records, each also as NAME=PATH.

    Without arguments: all of runs/. A folder that is a run is that run; else all runs below it. Raises UsageError
    for an argument that names nothing.
    """
    try:
        places, left_out = _places(arguments or [DEFAULT_GROUP])
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read ({error.strerror}): mend that, or leave it out"
        ) from error
    if not places:
        tried = ", ".join(arguments) or f"{DEFAULT_GROUP}/"
        raise UsageError(
            f"no run in {tried}: train one, such as `python train_cifar.py demo`, or name folders of runs or "
            "records of results/"
        )
    unnamed = [place for place, name in places.items() if not name]
    names = dict(zip(unnamed, _short_names(unnamed), strict=True))
    runs = []
    for place, name in places.items():
        chosen = name or names[place]
        runs += _runs_of_record(place, chosen) if place.suffix == ".json" else [_run_of_folder(place, chosen)]
    return Found(_with_names_that_differ(runs), left_out)


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "metrics.jsonl"))


# -- where they lie ---------------------------------------------------------------------------------------


def _places(arguments: Sequence[str]) -> tuple[dict[Path, str], list[Path]]:
    """Each run's folder or record with the name that it was given, or ""; and the files that are no records."""
    places: dict[Path, str] = {}
    seen = set()
    left_out = []
    for argument in arguments:
        name, pattern = _name_and_path(argument)
        for path in _matches(pattern):
            found = list(_runs_at(path))
            if not found and path.is_file():
                left_out.append(path)
            for place in found:
                if place.resolve() in seen:
                    continue
                seen.add(place.resolve())
                below = os.path.relpath(place, path) if len(found) > 1 else "."
                places[place] = name and (name if below == "." else f"{name}/{below}")
    return places, left_out


def _name_and_path(argument: str) -> tuple[str, str]:
    """NAME=PATH -> (NAME, PATH), PATH -> ("", PATH), also where a folder's own name holds a `=`."""
    name, equals, path = argument.partition("=")
    if not equals or os.path.exists(os.path.expanduser(argument)):
        name, path = "", argument
    if not path or (equals and not name and path != argument):
        raise UsageError(f"{argument}: give a run as PATH or as NAME=PATH")
    return name, os.path.expanduser(path)


def _matches(pattern: str) -> list[Path]:
    """The path itself, or what a glob that the shell left alone stands for."""
    if os.path.exists(pattern):
        return [Path(pattern)]
    found = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    if not found and pattern != DEFAULT_GROUP:
        raise UsageError(f"{pattern} is not there: name a run's folder, a folder of runs, or a record of results/")
    return found


def _runs_at(path: Path) -> Iterator[Path]:
    """Folders of runs, or .json files of records, that a path stands for."""
    if path.is_dir():
        yield from [path] if is_run(path) else _runs_below(path)
    elif path.name in ("config.json", "metrics.jsonl", "summary.json"):
        yield path.parent
    elif path.name.endswith(".metrics.jsonl"):
        record = path.with_name(path.name.replace(".metrics.jsonl", ".json"))
        yield from [record] if _is_record(record) else []
    elif _is_record(path):
        yield path


def _runs_below(folder: Path) -> Iterator[Path]:
    entries = sorted(folder.iterdir(), key=_by_numbers)
    for entry in entries:
        if entry.is_dir() and entry.name not in NOT_ENTERED and not entry.name.startswith("."):
            yield from [entry] if is_run(entry) else _runs_below(entry)
    yield from (entry for entry in entries if _is_record(entry))


def _by_numbers(path: Path) -> list:
    """A key that sorts run-2 before run-10."""
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path.name)]


def _is_record(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(record, dict) and record.keys() >= FIELDS_OF_A_RECORD


# -- how they are called ----------------------------------------------------------------------------------


def _short_names(places: list[Path]) -> list[str]:
    """Paths without the folders that all of them share; records by their own name."""
    folders = [place.absolute() for place in places if place.suffix != ".json"]
    if len(folders) > 1:
        common = os.path.commonpath(folders)
    elif folders:
        common = str(folders[0].parent.parent)
    return [
        place.stem if place.suffix == ".json" else os.path.relpath(place.absolute(), common) for place in places
    ]


def _with_names_that_differ(runs: list[Run]) -> list[Run]:
    """Runs of the same name get their path behind it; what no terminal can show becomes a `?`."""
    names = [run.name for run in runs]
    chosen = [run.name if names.count(run.name) == 1 else f"{run.name} ({run.path})" for run in runs]
    shown = [re.sub(r"[\x00-\x1f\x7f]", "?", name.encode("utf-8", "replace").decode()) for name in chosen]
    return [replace(run, name=name) for run, name in zip(runs, shown, strict=True)]


# -- what they hold ---------------------------------------------------------------------------------------


def _run_of_folder(folder: Path, name: str) -> Run:
    settings, broken_settings = _read_object(folder / "config.json")
    summary, broken_summary = _read_object(folder / "summary.json")
    rows, broken_rows = _read_rows(folder / "metrics.jsonl")
    status: Status = "running" if is_owned(folder) else "finished" if summary else "crashed or stopped"
    damage = "; ".join(line for line in (broken_settings, broken_summary, broken_rows) if line)
    script = _script_of(settings, summary.get("command", ""))
    return Run(name, folder, script, status, settings, summary, rows, damage)


def _runs_of_record(path: Path, name: str) -> list[Run]:
    """The record's run, or a run for each of its seeds."""
    record = json.loads(path.read_text(encoding="utf-8"))
    rows, damage = _read_rows(path.with_suffix(".metrics.jsonl"))
    command = record["command"]
    whole = Run(
        name,
        path,
        _script_of({}, command),
        "finished",
        {**_flags_of(command), "recipe": record["recipe"]},
        {
            **record["numbers"],
            "git_commit": record["commit"],
            "command": command,
            "device": record["hardware"],
        },
        rows,
        damage,
        only_flags_known=True,
    )
    if not record["runs"]:
        return [replace(whole, settings=whole.settings | {"seed": record["seeds"][0]})]
    of_seeds = {seed: list(own) for seed, own in itertools.groupby(rows, key=lambda row: row.get("seed"))}
    return [
        replace(
            whole,
            name=f"{name} seed {seed}",
            settings=whole.settings | {"seed": seed},
            summary=whole.summary | of_seed,
            rows=of_seeds.get(seed, []),
        )
        for seed, of_seed in zip(record["seeds"], record["runs"], strict=True)
    ]


def _read_object(path: Path) -> tuple[dict, str]:
    """A JSON object, and what is wrong with the file; a missing file is an empty one."""
    if not path.is_file():
        return {}, ""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        return {}, f"{path} cannot be read ({error})"
    return (found, "") if isinstance(found, dict) else ({}, f"{path} holds no settings or numbers by name")


def _read_rows(path: Path) -> tuple[list[dict], str]:
    if not path.is_file():
        return [], ""
    state = path.stat()
    return _rows_as_of(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1000)
def _rows_as_of(path: Path, changed: int, size: int) -> tuple[list[dict], str]:
    """Whoever watches runs reads anew only the files that have changed."""
    try:
        return read_metrics(path), ""
    except (UsageError, OSError) as error:
        return [], str(error)


def _script_of(settings: dict, command: str) -> str:
    for script, flag in FLAG_OF_SCRIPT.items():
        if flag in settings:
            return script
    named = re.search(r"train_(\w+)\.py", command)
    return named[1] if named else ""


def _flags_of(command: str) -> dict[str, Any]:
    """`.. train_cifar.py resnet --lr 0.1 --no-flip` -> {"lr": 0.1, "flip": False}."""
    words = shlex.split(command)
    start = next((i for i, word in enumerate(words) if word.endswith(".py")), len(words))
    flags: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words[start + 1 :]:
        if word.startswith("--"):
            flag, equals, value = word.removeprefix("--").partition("=")
            values = flags[flag.replace("-", "_")] = [value] if equals else []
        else:
            values.append(word)
    settings: dict[str, Any] = {}
    for flag, given in flags.items():
        if given:
            settings[flag] = _value(given[0]) if len(given) == 1 else [_value(word) for word in given]
        else:
            settings[flag.removeprefix("no_")] = not flag.startswith("no_")
    return settings


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word
