"""README's table of results, a row a task, and results/README.md with all of them, from the records.

results/notes/train_*.md is what is to be said of a script's results besides; a line `{{file.txt}}` in it stands
for the text of results/file.txt, from its first empty line on if it has a head with command and commit.
"""

import json
import re
from pathlib import Path
from typing import Any

from tools.published.catalogue import ROOT, Entry, read_catalogue
from training.errors import UsageError
from training.metrics import SPLITS, metric
from training.run_folder import write_whole

HEADLINES = (  # the metrics of the tables, in their order
    "test/bleu",
    "test/bleu_without_near_duplicates",
    "test/chrf",
    "test_extra/bleu",
    "test/accuracy",
    "test/accuracy_views",
    "test/dice",
    "test/iou",
    "test/dice_views",
    "test/elbo",
    "test/iw_bound",
    "test/bits_per_dim",
    "test/wrong_label_hits",
    "test/prior_hits",
)
FIELDS = (  # of a record
    "name",
    "script",
    "recipe",
    "note",
    "chosen_on",
    "command",
    "commit",
    "code",
    "hardware",
    "seeds",
    "log",
    "numbers",
    "std",
    "runs",
)
NUMBERS = ("train_seconds", "total_seconds", "n_parameters", "mixed_precision", "device", "num_processes")
SCRIPTS = {  # headings of results/README.md
    "train_translation.py": "Translation",
    "train_cifar.py": "Classifiers",
    "train_unet.py": "U-Nets",
    "train_cvae.py": "Conditional VAEs",
}
PRECISIONS = {"no": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}  # what Accelerate's words mean
BEGIN, END = "<!-- results: made by `make results` -->", "<!-- end of results -->"
INTRODUCTION = """# Results

Made by `make results` from the records beside this page. [records.yaml](records.yaml) lists them, and
`python -m tools.reproduce` makes what is missing or was made by other code.

- **Score** columns are of the test split, read once, at the end; of several seeds the mean ± standard deviation.
- **seeds**: the number of runs that differ in nothing else.
- **time** is that of training a seed, without the evaluation after it.
- **chosen on**: the split by which settings were compared before. *Test* means that the number is somewhat
  favoured; *not noted* that nobody wrote it down; *nothing* that no setting was compared.
- **record**: the recipe's name links all that is known of the runs: command, hardware, versions, every number. Then
  the commit of the code, with `*` where the tree held more than the commit.
"""


def read_record(name: str, root: Path = ROOT) -> dict[str, Any] | None:
    """The record of this name, or None where there is none. Raises UsageError where it lacks a field."""
    path = root / "results" / f"{name}.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = [field for field in FIELDS if field not in record]
    missing += [f"numbers.{name}" for name in NUMBERS if name not in record.get("numbers", {})]
    if missing:
        raise UsageError(f"results/{name}.json lacks {', '.join(missing)}: record it again")
    return record


def write_tables(root: Path = ROOT) -> None:
    """Write README's block and results/README.md."""
    readme = root / "README.md"
    write_whole(readme, readme_with_table(readme.read_text(encoding="utf-8"), root))
    write_whole(root / "results" / "README.md", results_page(root))


# --- README


def readme_with_table(readme: str, root: Path = ROOT) -> str:
    """The README with its table made anew. Raises UsageError if the markers are gone."""
    if BEGIN not in readme or END not in readme:
        raise UsageError(f"README.md has no line {BEGIN!r} or {END!r}: put them where the table belongs")
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{task_table(root)}\n{END}{rest.split(END, 1)[1]}"


def task_table(root: Path = ROOT) -> str:
    """A row for each task that has a record."""
    lines = _head("task", "recipe", "test", "time", "hardware", "course project", "best elsewhere")
    for entry in read_catalogue(root):
        record = read_record(entry.name, root) if entry.task else None
        if record is not None:
            lines.append(
                _row(
                    entry.task,
                    f"[`{entry.recipe}`](results/{entry.name}.json)",
                    _score(entry.score, record, labelled=True),
                    _duration(record["numbers"]["train_seconds"]),
                    _short_hardware(record),
                    entry.course.says if entry.course else "–",
                    entry.best_elsewhere.says if entry.best_elsewhere else "–",
                )
            )
    return "\n".join(lines)


# --- results/README.md


def results_page(root: Path = ROOT) -> str:
    """All tables, by script, with the notes on each."""
    entries = read_catalogue(root)
    sections = [INTRODUCTION]
    for script in dict.fromkeys([*SCRIPTS, *(entry.script for entry in entries)]):
        of_script = [entry for entry in entries if entry.script == script]
        recorded = [(entry, record) for entry in of_script if (record := read_record(entry.name, root))]
        if recorded:
            sections.append(f"## {SCRIPTS.get(script, script)}\n\n{_script_table(recorded)}\n")
            sections += [text for text in (_remarks(recorded), _compared(recorded), _notes(script, root)) if text]
    return "\n".join(sections)


def _script_table(recorded: list[tuple[Entry, dict]]) -> str:
    scores = [key for key in HEADLINES if any(key in record["numbers"] for _, record in recorded)]
    lines = _head("what", *(_column(key) for key in scores), "seeds", "time", "hardware", "chosen on", "record")
    for entry, record in recorded:
        numbers = record["numbers"]
        commit = record["commit"] or "none"
        links = [
            f"[`{entry.recipe}`]({entry.name}.json)",
            f"`{commit[:7]}`{'*' if commit.endswith('-dirty') else ''}",
            f"[curve]({entry.name}.metrics.jsonl)",
        ]
        if record["log"]:
            links.append(f"[log]({record['log']})")
        lines.append(
            _row(
                entry.title,
                *(_score(key, record) if key in numbers else "" for key in scores),
                str(len(record["seeds"])),
                _duration(numbers["train_seconds"]),
                f"{_short_hardware(record)}, {PRECISIONS[numbers['mixed_precision']]}",
                record["chosen_on"],
                " ".join(links),
            )
        )
    return "\n".join(lines)


def _remarks(recorded: list[tuple[Entry, dict]]) -> str:
    """What is to be known of the runs themselves."""
    return "".join(f"- {entry.title}: {record['note']}.\n" for entry, record in recorded if record["note"])


def _compared(recorded: list[tuple[Entry, dict]]) -> str:
    """Where the numbers are from that README's table has beside ours."""
    lines = []
    for entry, _ in recorded:
        for who, other in (("course project", entry.course), ("best elsewhere", entry.best_elsewhere)):
            if other:
                lines.append(f"- {entry.task}, {who}: {other.says}, {other.source}.\n")
    return f"Compared with:\n\n{''.join(lines)}" if lines else ""


def _notes(script: str, root: Path) -> str:
    """results/notes/train_*.md, with the texts that it names."""
    results = root / "results"
    path = results / "notes" / f"{Path(script).stem}.md"
    if not path.exists():
        return ""

    def included(match: re.Match) -> str:
        text = (results / match[1]).read_text(encoding="utf-8")
        paragraphs = text.rstrip("\n").split("\n\n")
        return paragraphs[1] if len(paragraphs) > 1 else paragraphs[0]

    return re.sub(r"^\{\{(.+)\}\}$", included, path.read_text(encoding="utf-8"), flags=re.MULTILINE)


# --- cells


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def _label(key: str) -> str:
    label = metric(key).label
    return f"{label} on the {SPLITS['test_extra']}" if key.startswith("test_extra/") else label


def _column(key: str) -> str:
    """The heading of a score: its label and unit."""
    return f"{_label(key)},{metric(key).unit}" if metric(key).unit else _label(key)


def _score(key: str, record: dict, labelled: bool = False) -> str:
    """A number of the record, with its standard deviation over the seeds; labelled: as README shows it."""
    known = metric(key)
    digits = known.digits
    assert digits is not None  # headlines are in the table of metrics
    text = f"{known.factor * record['numbers'][key]:.{digits}f}"
    if key in record["std"]:
        text += f" ± {known.factor * record['std'][key]:.{max(digits, 2)}f}"
    if not labelled:
        return text
    if known.unit.strip() == "%" and known.label == "accuracy":
        return f"{text}{known.unit}"
    label = _label(key)
    views = " over test-time views"
    if label.endswith(views):
        return f"{text}{known.unit}{views}"
    return f"{text} {label}" if label == "bits/dim" else f"{label} {text}{known.unit}"


def _short_hardware(record: dict) -> str:
    """The processor without its trade marks, and its cores: of a run that took fewer of them, how many."""
    hardware = re.sub(r"\((?:R|TM)\)| (?:CPU|Processor)\b", "", record["hardware"])
    cores = re.search(r"(\d+) cores$", hardware)
    threads = re.fullmatch(r"CPU \((\d+) threads\)", record["numbers"]["device"])
    if cores and threads and int(threads[1]) < int(cores[1]):
        return f"{hardware[: cores.start()]}{threads[1]} of {cores[0]}"
    return hardware


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
