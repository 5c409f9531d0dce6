"""The table of a comparison: a row for each setting, its final numbers with mean and deviation over its seeds."""

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from tools.comparison.runs import Run
from training.metrics import METRICS, metric, readable_name

# Settings that change nothing of what a run learns or how fast: neither compared nor held against seeds.
NOT_COMPARED = {
    "output_dir",
    "resume",
    "resume_changes",
    "eval_only",
    "find_lr",
    "profile",
    "tracker",
    "log_every",
    "checkpointing_steps",
    "checkpoints_total_limit",
}
DATA = {"dataset", "dataset_config", "languages", "data_dir", "train_files", "valid_files", "test_files"}
# What the launch chose, by its key in summary.json: compared as settings are, once a run has ended.
LAUNCH = {"hardware": "device", "precision": "mixed_precision", "processes": "num_processes"}
TESTED = ("test", "test_extra")
COSTS = ("train_seconds", "n_parameters", "peak_memory_mb")
# Parts of the ELBO and sizes: none of them is better for being less by itself.
NEITHER_BETTER_NOR_WORSE = {"kl", "reconstruction", "gradient_norm", "n_parameters"}
NOT_KNOWN = "not known"  # a setting of a run of which only the flags are, or what comes with its end


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number that it sorts by."""

    text: str
    value: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Row:
    """The runs that differ in their seed alone, and a cell for each column."""

    name: str
    runs: list[Run]
    status: str
    settings: dict[str, Cell]
    numbers: dict[str, Cell]


@dataclass(frozen=True)
class Table:
    """Runs of one script. `settings` are those that differ, `equal` the others with their value."""

    settings: list[str]
    equal: dict[str, str]
    numbers: list[str]
    rows: list[Row]

    @property
    def note(self) -> str:
        """A line where the runs may have been tested on other data than each other."""
        differing = [key for key in self.settings if key in DATA]
        if not differing:
            return ""
        return f"These runs differ in {', '.join(differing)}: numbers of other data do not compare."


def compare(runs: Sequence[Run], by_seed: bool = False, values: Sequence[str] = ()) -> Table:
    """The table of runs of one script, a row for each setting, or for each run where `by_seed`.

    `values`: the numbers to show, by name, in the place of all.
    """
    groups = [[run] for run in runs] if by_seed else groups_of_seeds(runs)
    compared = [compared_settings(run) for run in runs]
    keys = [key for key in dict.fromkeys(itertools.chain(*compared)) if by_seed or key != "seed"]
    of_flags = [settings for run, settings in zip(runs, compared, strict=True) if run.only_flags_known]
    differing = [key for key in keys if _differs(key, compared, of_flags)]
    known = {key: value for settings in compared for key, value in settings.items()}
    equal = {key: setting_text(known[key]) for key in keys if key not in differing and key not in LAUNCH}
    names = list(values) or number_names(runs)
    columns = {name: _column(name, groups) for name in names}
    rows = []
    for index, (group, name) in enumerate(zip(groups, names_of(groups), strict=True)):
        settings = {key: _setting_cell(group[0], key) for key in differing}
        numbers = {number: cells[index] for number, cells in columns.items()}
        rows.append(Row(name, group, status_of(group), settings, numbers))
    return Table(differing, equal, names, rows)


def compared_settings(run: Run) -> dict[str, Any]:
    """Its settings that matter, and what its launch chose where that is known."""
    launch = {name: run.summary[key] for name, key in LAUNCH.items() if key in run.summary}
    return {key: value for key, value in run.settings.items() if key not in NOT_COMPARED} | launch


def _differs(key: str, compared: Sequence[dict], of_flags: Sequence[dict]) -> bool:
    """Whether runs have other values of a setting, or of those whose flags alone are known only some gave it."""
    known = {_canonical(settings[key]) for settings in compared if key in settings}
    given = {key in settings for settings in of_flags}
    return len(known) > 1 or len(given) > 1


def groups_of_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone, together. A run made twice is in two groups."""
    of_settings: dict[str, list[list[Run]]] = {}
    for run in runs:
        settings = {key: value for key, value in run.settings.items() if key not in NOT_COMPARED | {"seed"}}
        groups = of_settings.setdefault(_canonical([run.script, settings]), [])
        group = next((group for group in groups if all(_is_another_seed(run, other) for other in group)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [group for groups in of_settings.values() for group in groups]


def _is_another_seed(run: Run, other: Run) -> bool:
    """Of two runs of the same settings: whether nothing is known to differ but the seed."""
    known = [key for key in LAUNCH.values() if key in run.summary and key in other.summary]
    same_launch = all(run.summary[key] == other.summary[key] for key in known)
    return run.seed is not None and run.seed != other.seed and same_launch


def names_of(groups: Sequence[Sequence[Run]]) -> list[str]:
    """What the names of a group's runs have in common: `base-seed0`, `base-seed1` -> `base`."""
    names = [_common_name([run.name for run in group]) for group in groups]
    for i, group in enumerate(groups):
        if len(group) > 1 and (not names[i] or names.count(names[i]) > 1):
            names[i] = f"{group[0].name} and {len(group) - 1} more"
    return names


def _common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    letters = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*names, strict=False))
    common = "".join(column[0] for column in letters)
    return re.sub(r"[-_/ .=(]*(seeds?|s)?[-_/ .=]*$", "", common)


def status_of(runs: Sequence[Run]) -> str:
    """`finished`; `running, step 40, epoch 1.6 of 10`; of several runs `finished`, or `2 finished, 1 running`."""
    states = [run.status for run in runs]
    if len(runs) > 1:
        kinds = list(dict.fromkeys(states))
        return kinds[0] if len(kinds) == 1 else ", ".join(f"{states.count(kind)} {kind}" for kind in kinds)
    run = runs[0]
    if run.status == "finished":
        return run.status
    if not run.rows:
        return f"{run.status}, nothing logged yet"
    last = run.rows[-1]
    text = f"{run.status}, step {last['step']:,}"
    if _is_number(last.get("epoch")):
        text += f", epoch {last['epoch']:.4g}"
        text += f" of {run.settings['epochs']}" if "epochs" in run.settings else ""
    return text


def number_names(runs: Sequence[Run]) -> list[str]:
    """The final numbers that any of the runs has: tests, best validations, costs; each in the order of METRICS."""
    tested = {key for run in runs for key in run.summary if key.partition("/")[0] in TESTED}
    validated = {key for run in runs for row in run.rows for key in row if key.startswith("valid/")}
    costs = [key for key in COSTS if any(key in run.summary for run in runs)]
    return [
        *sorted(filter(_is_shown, tested), key=_order),
        *sorted(filter(_is_shown, validated), key=_order),
        *costs,
    ]


def is_main(name: str) -> bool:
    """Whether the metric is one of the table in training/metrics.py, and no variant such as of one class."""
    return name.rpartition("/")[2].removesuffix("_views") in METRICS


def column_title(name: str) -> str:
    """`test: accuracy`; of a curve also what of it is shown: `best validation: accuracy`, `last training: loss`."""
    if name == "peak_memory_mb":
        return "peak memory"
    of_curve = name not in COSTS and name.partition("/")[0] not in TESTED
    which = "best " if _is_best_of_curve(name) else "last " if of_curve else ""
    return which + readable_name(name)


def has_direction(name: str) -> bool:
    """Whether it is known if more of it is better or less."""
    return metric(name).digits is not None and name.rpartition("/")[2] not in NEITHER_BETTER_NOR_WORSE


def is_comparable(name: str) -> bool:
    """Whether the better of two runs can be told by it: a loss is another with each objective and smoothing."""
    return has_direction(name) and name.rpartition("/")[2] != "loss"


def final_value(run: Run, name: str) -> float | None:
    """Of the summary; of a validation the best of its curve; of what is only logged the last."""
    if name.partition("/")[0] in TESTED or _is_number(run.summary.get(name)):
        value = run.summary.get(name)
        return value if _is_number(value) else None
    values = [row[name] for row in run.rows if _is_number(row.get(name)) and math.isfinite(row[name])]
    if not values:
        return None
    if not _is_best_of_curve(name):
        return values[-1]
    return max(values) if metric(name).more_is_better else min(values)


def _is_best_of_curve(name: str) -> bool:
    return name.startswith("valid/") and has_direction(name)


def number_text(name: str, values: Sequence[float]) -> str:
    """A number as training/metrics.py shows it, with the deviation over several: `93.34 ± 0.31 % (n = 3)`."""
    if name == "peak_memory_mb":
        return f"{statistics.fmean(values):,.0f} MiB"
    known = metric(name)
    mean = statistics.fmean(values) if len(values) > 1 else values[0]
    if known.digits is None:
        text, digits = f"{known.factor * mean:.5g}", None
    else:
        text, digits = f"{known.factor * mean:,.{known.digits}f}", max(known.digits, 2)
    if len(values) > 1 and len(set(values)) > 1:
        deviation = known.factor * statistics.stdev(values)
        text += f" ± {deviation:.2g}" if digits is None else f" ± {deviation:,.{digits}f}"
    of = f" (n = {len(values)})" if len(values) > 1 and "±" in text else ""
    return f"{text}{known.unit}{of}"


def _column(name: str, groups: Sequence[Sequence[Run]]) -> list[Cell]:
    """The cells of one number; the best are marked where there is something to be better than."""
    found = [_values(group, name) for group in groups]
    means = [statistics.fmean(values) if values else None for values in found]
    texts = [number_text(name, values) if values else "" for values in found]
    finite = [mean for mean in means if mean is not None and math.isfinite(mean)]
    compared = len(set(finite)) > 1 and is_comparable(name)
    best = (max if metric(name).more_is_better else min)(finite) if compared else None
    shown = [number_text(name, [mean]) if mean is not None else "" for mean in means]
    best_text = number_text(name, [best]) if best is not None and len(set(shown) - {""}) > 1 else None
    return [Cell(text, mean, own == best_text) for text, mean, own in zip(texts, means, shown, strict=True)]


def _values(group: Sequence[Run], name: str) -> list[float]:
    """Of the runs that have ended; of those that have not only where none has, so that no mean mixes them."""
    ended = [run for run in group if run.status == "finished"] or group
    values = [final_value(run, name) for run in ended]
    return [value for value in values if value is not None]


def _setting_cell(run: Run, key: str) -> Cell:
    settings = compared_settings(run)
    if key not in settings:
        return Cell(NOT_KNOWN)
    value = settings[key]
    return Cell(setting_text(value), float(value) if _is_number(value) else None)


def setting_text(value: Any) -> str:
    """A setting as people write it: `8, 8, 8`, `yes`, `none`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(setting_text, value)) or "none"
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return "none" if value in (None, "") else str(value)


def _canonical(value: Any) -> str:
    """Equal for equal settings, whether they came as 1 or 1.0."""

    def plain(number: str) -> float:
        return int(float(number)) if float(number).is_integer() else float(number)

    return json.dumps(json.loads(json.dumps(value, default=str), parse_float=plain), sort_keys=True)


def _is_shown(name: str) -> bool:
    """Counts of what was tested, and names and signatures, are no results."""
    last = name.rpartition("/")[2]
    return not last.startswith("n_") and not last.endswith(("_signature", "_samples"))


def _order(name: str) -> tuple:
    split, _, last = name.rpartition("/")
    known = list(METRICS)
    plain = last.removesuffix("_views")
    place = known.index(plain) if plain in METRICS else len(known)
    return (
        plain not in METRICS,
        TESTED.index(split) if split in TESTED else len(TESTED),
        plain == "loss",
        place,
        name,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# -- on a terminal ----------------------------------------------------------------------------------------

MOST_SETTINGS = 6  # in a line
MOST_LETTERS = 30  # of a setting


def as_text(table: Table) -> str:
    """The table in Markdown, the best in bold: main numbers, validations where a test is missing, what differs."""
    numbers = [name for name in table.numbers if is_main(name) and name not in COSTS]
    tests = [name for name in numbers if not name.startswith("valid/")]
    if all(any(row.numbers[name].text for name in tests) for row in table.rows):
        numbers = tests
    numbers = [*(numbers or table.numbers), *(name for name in table.numbers if name == "train_seconds")]
    header = ["run", "status", *map(column_title, numbers), "settings that differ"]
    alignment = ["left", "left", *["right"] * len(numbers), "left"]
    lines = list(_lines(table, numbers))
    text = tabulate(lines, header, tablefmt="pipe", colalign=alignment, disable_numparse=True)
    return f"{text}\n\n{table.note}" if table.note else text


def _lines(table: Table, numbers: Sequence[str]) -> Iterator[list[str]]:
    for row in table.rows:
        cells = [row.numbers[name] for name in numbers]
        words = [row.name, row.status, *(f"**{c.text}**" if c.best else c.text for c in cells), _in_a_line(row)]
        yield [word.replace("|", r"\|") for word in words]


def _in_a_line(row: Row) -> str:
    """`lr 0.1, epochs 20 and 3 more`."""
    given = [f"{key} {_cut(cell.text)}" for key, cell in row.settings.items() if cell.text != NOT_KNOWN]
    more = len(given) - MOST_SETTINGS
    return ", ".join(given[:MOST_SETTINGS]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
