"""The runs whose numbers are published, as results/records.yaml lists them."""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from training.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
CHOSEN_ON = ("validation", "test", "validation and test", "training and test", "nothing", "not noted")
DATA, DATA_VARIABLE = "{data}", "ONECYCLE_DATA"
RUN_FOLDERS = Path("runs/records")  # below the root: NAME/seed<n> is the folder of a run that is reproduced


@dataclass(frozen=True)
class Comparison:
    """A number that others have: what the table says of it, and where it is from."""

    says: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A recipe whose numbers are published."""

    name: str  # of the record, results/NAME.json
    title: str  # what was trained
    script: str  # train_*.py
    recipe: str
    flags: str = ""  # as on a command line, with {data} and {run:NAME}
    launch: str  # name of a YAML of accelerate_configs/, without its ending
    threads: int = 0  # of a process; 0: as many as the launch takes
    gpu: bool = False  # it needs one
    seeds: list[int]
    minutes: float  # that a seed takes
    hardware: str  # on which it takes them
    chosen_on: str  # the split that settings were compared by, one of CHOSEN_ON
    task: str = ""  # the row of README's table; empty: none
    score: str = ""  # the metric that this row shows
    course: Comparison | None = None  # what the course project has
    best_elsewhere: Comparison | None = None  # what the best of the others has

    @property
    def launched_by(self) -> str:
        """What stands on a command line before the script's name."""
        threads = f"OMP_NUM_THREADS={self.threads} " if self.threads else ""
        return f"{threads}accelerate launch --config_file accelerate_configs/{self.launch}.yaml"

    @property
    def needs(self) -> list[str]:
        """Names of the records whose runs this one reads."""
        return re.findall(r"\{run:([^}]+)\}", self.flags)

    def run_folder(self, seed: int) -> Path:
        """Where a seed is trained, relative to the repository's root."""
        return RUN_FOLDERS / self.name / f"seed{seed}"

    def arguments(self, seed: int, data: str) -> list[str]:
        """The script's arguments for a seed, where `data` is the folder that {data} stands for."""
        words = []
        for word in shlex.split(self.flags):
            word = re.sub(r"\{run:([^}]+)\}", lambda match: str(RUN_FOLDERS / match[1] / "seed0"), word)
            words.append(word.replace(DATA, data))
        return [
            *(self.recipe, *words),
            *("--seed", str(seed), "--tracker", "none", "--output_dir", str(self.run_folder(seed))),
        ]

    def command(self, seed: int) -> str:
        """What one types for a seed, with the data where the variable of the environment says."""
        return " ".join([self.launched_by, self.script, *self.arguments(seed, f"${DATA_VARIABLE}")])

    def data_files(self, data: str) -> list[Path]:
        """The files and folders of `data` that the run reads."""
        return [Path(word.replace(DATA, data)) for word in shlex.split(self.flags) if DATA in word]


def read_catalogue(root: Path = ROOT) -> list[Entry]:
    """The entries of the repository's results/records.yaml, in its order.

    Raises UsageError, naming the entry and the field, for whatever is wrong in it.
    """
    path = root / "results" / "records.yaml"
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(listed, dict) or set(listed) != {"records"} or not isinstance(listed["records"], list):
        raise UsageError(f"{path}: it must hold `records:` with a list, and nothing else")
    entries: list[Entry] = []
    for number, fields in enumerate(listed["records"], start=1):
        known = fields.get("name") if isinstance(fields, dict) else None
        try:
            entries.append(_entry(fields, {entry.name: entry for entry in entries}, root))
        except UsageError as error:
            raise UsageError(f"{path}, {known or f'record {number}'}: {error}") from error
    return entries


def _entry(fields: Any, before: Mapping[str, Entry], root: Path) -> Entry:
    """An entry from its fields; `before`: those that stand before it, by name."""
    if not isinstance(fields, dict):
        raise UsageError("a record is a list of `field: value`")
    _check_fields(fields, Entry)
    comparisons = {}
    for name in ("course", "best_elsewhere"):
        if name in fields:
            if not isinstance(fields[name], dict):
                raise UsageError(f"`{name}` has the fields `says` and `source`")
            _check_fields(fields[name], Comparison)
            comparisons[name] = Comparison(**fields[name])
    entry = Entry(**{**fields, **comparisons})
    if not re.fullmatch(r"[\w.-]+", entry.name):
        raise UsageError("`name` becomes a file's: letters, digits, points, - and _")
    if entry.name in before:
        raise UsageError("the name stands twice")
    if not (root / entry.script).is_file():
        raise UsageError(f"there is no script {entry.script}")
    if not (root / "accelerate_configs" / f"{entry.launch}.yaml").is_file():
        raise UsageError(f"there is no accelerate_configs/{entry.launch}.yaml")
    if not entry.seeds or len(set(entry.seeds)) < len(entry.seeds):
        raise UsageError("`seeds` is a list of different whole numbers")
    if entry.minutes <= 0:
        raise UsageError("`minutes` is more than 0")
    if entry.chosen_on not in CHOSEN_ON:
        raise UsageError(f"`chosen_on` is {entry.chosen_on!r}; it is one of {', '.join(CHOSEN_ON)}")
    if bool(entry.task) != bool(entry.score):
        raise UsageError("`task` and `score` stand together")
    for name in entry.needs:
        if name not in before or 0 not in before[name].seeds:
            raise UsageError(f"{{run:{name}}} must stand before it, with a seed 0")
    return entry


def _check_fields(fields: Mapping, kind: type) -> None:
    """Raise UsageError unless the fields are those of the dataclass `kind`, of the right types."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    in_words: dict[Any, str] = {
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list[int]: "a list of whole numbers",
    }
    for name in fields:
        if name not in known:
            raise UsageError(f"unknown field `{name}`; the fields are {', '.join(known)}")
    for name, field in known.items():
        if name not in fields:
            if field.default is dataclasses.MISSING:
                raise UsageError(f"the field `{name}` is missing")
        elif not _is_of_type(fields[name], field.type):
            raise UsageError(f"`{name}` must be {in_words[field.type]}")


def _is_of_type(value: object, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == list[int]:
        return isinstance(value, list) and all(_is_of_type(item, int) for item in value)
    return not isinstance(kind, type) or isinstance(value, kind)


def named(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """The entries of these names, in the catalogue's order; without names, all. Raises UsageError."""
    unknown = [name for name in names if name not in {entry.name for entry in entries}]
    if unknown:
        raise UsageError(
            f"results/records.yaml has no {', '.join(unknown)}; it has {', '.join(e.name for e in entries)}"
        )
    return [entry for entry in entries if not names or entry.name in names]
