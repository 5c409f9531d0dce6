"""Docstrings, README and the pages quote no result that no record in results/ holds.

A result is a number with the name or unit of a score: `BLEU 51.7`, `chrF 65.8`, `Dice 0.912`, `IoU 0.838`,
`95.10 %` (with a digit behind the point), `-85.2 nats`, `4.339 bits/dim`; of `93.34 +- 0.31 %` and `0.902 to 0.912`
both. It is held where a number of that kind has the same digits in a record, its curve or its note, in the lines of
a benchmark, or in what records.yaml compares with. Of modules below the scripts, shares in percent may be others.
"""

import ast
import json
import re
from collections.abc import Iterator

import pytest

from tools.published.catalogue import ROOT, read_catalogue
from training.metrics import metric, read_metrics

KINDS = {  # how a score is quoted, by what it is held as
    "bleu": r"BLEU (?P<a>\d+\.\d+)",
    "chrf": r"chrF (?P<a>\d+\.\d+)",
    "dice": r"Dice (?P<a>0\.\d+)(?: to (?P<b>0\.\d+))?",
    "iou": r"IoU (?P<a>0\.\d+)(?: to (?P<b>0\.\d+))?",
    "percent": r"(?P<a>\d+\.\d+)(?: (?:\+-|±) (?P<b>\d+\.\d+))? %",
    "nats": r"(?P<a>-?\d+\.\d+)(?: (?:\+-|±) (?P<b>\d+\.\d+))? nats",
    "bits/dim": r"(?P<a>\d+\.\d+) bits/dim",
}
PROGRAMS = ("data", "models", "training", "figures", "tools", "benchmarks")


def texts() -> dict[str, str]:
    """Whatever may quote a result, by where it stands: docstrings, and pages without their code blocks."""
    found = {}
    files = [*ROOT.glob("*.py"), *(path for room in PROGRAMS for path in (ROOT / room).rglob("*.py"))]
    for path in files:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        documented = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = [ast.get_docstring(node) or "" for node in documented]
        text = "\n\n".join(docstrings)
        found[str(path.relative_to(ROOT))] = text if path.parent == ROOT else text.replace(" %", "")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md")]
    for path in pages:
        page = path.read_text(encoding="utf-8")
        found[str(path.relative_to(ROOT))] = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return found


def quotes(text: str) -> Iterator[tuple[str, str]]:
    """The kind and the digits of each result in a text."""
    for kind, pattern in KINDS.items():
        for match in re.finditer(pattern, re.sub(r"\s+", " ", text)):
            yield from ((kind, number) for number in match.groups() if number)


def kind_of(name: str) -> tuple[str, float]:
    """What a number of a record is held as, and what it is multiplied by to be shown."""
    known = metric(name)
    units = {" %": "percent", " nats": "nats", " nats/token": "nats/token"}
    labels = ("bits_per_dim", "bits/dim"), ("bleu", "bleu"), ("chrf", "chrf"), ("dice", "dice"), ("iou", "iou")
    for word, kind in labels:
        if word in name:
            return kind, 1.0
    return units.get(known.unit, "other"), known.factor


def numbers_in(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers_in(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_in(item, name)
    elif isinstance(value, float):
        kind, factor = kind_of(name)
        yield kind, factor * value


def held() -> dict[str, list[float]]:
    """The numbers of all records, and those that they are compared with, by kind."""
    results = ROOT / "results"
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")]
    said = [path.read_text(encoding="utf-8").replace("%", " %") for path in results.glob("*-speed*.txt")]
    said += [content.get("note", "") for content in contents]
    for entry in read_catalogue():
        said += [f"{other.says} {other.source}" for other in (entry.course, entry.best_elsewhere) if other]
    numbers = {kind: [] for kind in KINDS}
    for kind, digits in quotes("\n".join(said)):
        numbers[kind].append(float(digits))
    for path in results.glob("*.metrics.jsonl"):
        for row in read_metrics(path):
            contents.append({name: value for name, value in row.items() if name.startswith(("valid/", "test/"))})
    for kind, number in numbers_in(contents):
        numbers.setdefault(kind, []).append(number)
    return numbers


def is_held(digits: str, numbers: list[float]) -> bool:
    places = len(digits.partition(".")[2])
    return any(f"{number:.{places}f}" == digits for number in numbers)


def test_every_quoted_result_is_in_a_record():
    numbers = held()
    missing = [
        f"{place}: {digits} ({kind})"
        for place, text in texts().items()
        for kind, digits in quotes(text)
        if not is_held(digits, numbers[kind])
    ]
    assert not missing, "no record holds these:\n" + "\n".join(missing)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BLEU 51.7 after 36 minutes", [("bleu", "51.7")]),
        ("test Dice\n 0.902 to 0.912", [("dice", "0.902"), ("dice", "0.912")]),
        ("93.34 +- 0.31 %, 94 %", [("percent", "93.34"), ("percent", "0.31")]),
        ("ELBO -85.2 nats and 4.339 bits/dim", [("nats", "-85.2"), ("bits/dim", "4.339")]),
        ("0.3 dropout, lr 1.5e-3, 8.9 minutes", []),
    ],
)
def test_what_counts_as_a_result(text, found):
    assert list(quotes(text)) == found


def test_a_number_is_held_to_the_digits_that_are_quoted():
    assert is_held("51.7", [51.68]) and not is_held("51.70", [51.68]) and not is_held("51.8", [51.68])
    assert ("percent", 95.1) in [(kind, round(number, 3)) for kind, number in numbers_in({"test/accuracy": 0.951})]
