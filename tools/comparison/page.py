"""The page of a comparison: its data, and one HTML file with style, script and data inside."""

import base64
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.comparison.curves import FEWEST_POINTS, MOST_POINTS, curve_names, curves_of
from tools.comparison.runs import Run
from tools.comparison.samples import MOST_RUNS, same_figures, same_sentences
from tools.comparison.table import (
    Cell,
    Row,
    Table,
    column_title,
    compare,
    has_direction,
    is_comparable,
    is_main,
)
from training.metrics import metric, readable_name

HERE = Path(__file__).resolve().parent
FIGURE_BUDGET = 3_000_000  # characters of all figures
CURVE_BUDGET = 5_000_000  # characters of all curves
TITLES = {
    "translation": "Translation",
    "unet": "Segmentation",
    "cvae": "Conditional VAE",
    "cifar": "Classification",
}
MADE_BY = {  # where and by what code a run was made: column, key of summary.json
    "hardware": "device",
    "precision": "mixed_precision",
    "processes": "num_processes",
    "torch": "torch",
    "commit": "git_commit",
    "command": "command",
}


def by_script(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each script, in the order of TITLES; those of which it cannot be told at the end."""
    order = list(TITLES)
    scripts = sorted({run.script for run in runs}, key=lambda s: order.index(s) if s in order else len(order))
    return {script: [run for run in runs if run.script == script] for script in scripts}


def title_of(script: str) -> str:
    return f"{TITLES[script]} (train_{script}.py)" if script in TITLES else script or "Runs of an unknown script"


# -- data -------------------------------------------------------------------------------------------------


def page_data(runs: Sequence[Run], notes: Sequence[str], values: Sequence[str], reload: int) -> dict[str, Any]:
    """What the page shows; `notes` at its top. `reload`: seconds after which it loads itself anew; 0: never."""
    scripts = by_script(runs)
    budget = FIGURE_BUDGET // max(len(scripts), 1)
    sections = [_section(script, of_script, values, budget) for script, of_script in scripts.items()]
    _add_curves(sections, scripts)
    return {
        "made": time.strftime("%Y-%m-%d %H:%M:%S"),
        "reload": reload,
        "notes": list(notes),
        "sections": sections,
    }


def _section(script: str, runs: list[Run], values: Sequence[str], budget: int) -> dict[str, Any]:
    table = compare(runs, values=values)
    place = {id(run): i for i, run in enumerate(runs)}
    main, others = curve_names(runs)
    if chosen := [name for name in [*main, *others] if name in values]:
        main, others = chosen, []
    best = _best_first(table)[:MOST_RUNS]
    sampled = [row.runs[0] for row in best]
    sentences = same_sentences(sampled)
    figures, left_out = same_figures(sampled, script, budget)
    rows = [_row(row, place) for row in table.rows]
    return {
        "id": script or "other",
        "title": title_of(script),
        "columns": _columns(table),
        "equal": table.equal,
        "note": table.note,
        "rows": rows,
        "seed_rows": [_row(row, place) for row in compare(runs, by_seed=True, values=values).rows]
        if len(rows) < len(runs)
        else [],
        "made_by": list(MADE_BY),
        "runs": [{"name": run.name} for run in runs],
        "charts": {"main": main, "others": others},
        "metrics": {name: _metric(name) for name in [*main, *others]},
        "samples": {
            "rows": [table.rows.index(row) for row in best],
            "sentences": sentences,
            "figures": figures,
            "note": _samples_note(len(table.rows), len(best), left_out) if sentences or figures else "",
        },
    }


def _columns(table: Table) -> list[dict[str, Any]]:
    numbers = [
        {"key": name, "title": column_title(name), "kind": "number", "minor": not is_main(name)}
        for name in table.numbers
    ]
    if all(column["minor"] for column in numbers):
        numbers = [{**column, "minor": False} for column in numbers]
    return [*numbers, *({"key": key, "title": key, "kind": "setting", "minor": False} for key in table.settings)]


def _row(row: Row, place: dict[int, int]) -> dict[str, Any]:
    cells = {**row.numbers, **row.settings}
    return {
        "name": row.name,
        "status": row.status,
        "runs": [place[id(run)] for run in row.runs],
        "seeds": [run.seed for run in row.runs],
        "cells": {key: _cell(cell) for key, cell in cells.items()},
        "made_by": [_made_by(row.runs, key) for key in MADE_BY.values()],
    }


def _cell(cell: Cell) -> list:
    return [cell.text, cell.value if cell.value is None or _is_finite(cell.value) else None, cell.best]


def _made_by(runs: Sequence[Run], key: str) -> str:
    """What the runs' summaries say, each thing once."""
    found = []
    for run in runs:
        value = run.summary.get("versions", {}).get(key) if key == "torch" else run.summary.get(key)
        found.append("" if value is None else str(value)[:17] if key == "git_commit" else str(value))
    if key == "command":
        return found[0] + (f" (and {len(runs) - 1} more seeds)" if len(runs) > 1 else "")
    return ", ".join(dict.fromkeys(word for word in found if word))


def _metric(name: str) -> dict[str, Any]:
    known = metric(name)
    better = ("more" if known.more_is_better else "less") if has_direction(name) else ""
    return {**dataclasses.asdict(known), "label": readable_name(name), "better": better}


def _best_first(table: Table) -> list[Row]:
    """Rows by their first number that has a better and a worse; rows without it at the end."""
    name = next((name for name in table.numbers if is_comparable(name)), None)
    if name is None:
        return list(table.rows)
    sign = -1 if metric(name).more_is_better else 1

    def key(row: Row) -> tuple[bool, float]:
        value = row.numbers[name].value
        return (True, 0.0) if value is None or not _is_finite(value) else (False, sign * value)

    return sorted(table.rows, key=key)


def _samples_note(n_rows: int, n_best: int, left_out: int) -> str:
    note = f"Of {n_rows} settings the best {n_best}, the first seed of each." if n_rows > n_best else ""
    return f"{note} {left_out} figures are left out to keep the page small.".strip() if left_out else note


def _is_finite(value: float) -> bool:
    return abs(value) != float("inf") and value == value


def _add_curves(sections: list[dict[str, Any]], scripts: dict[str, list[Run]]) -> None:
    """Put curves into the sections' runs, with as many points as keep them within CURVE_BUDGET."""
    most = MOST_POINTS
    while True:
        size = 0
        for section, runs in zip(sections, scripts.values(), strict=True):
            names = [*section["charts"]["main"], *section["charts"]["others"]]
            for entry, run in zip(section["runs"], runs, strict=True):
                entry.update(curves_of(run, names, most))
                size += len(json.dumps(entry))
            section["most_points"] = most
        if size <= CURVE_BUDGET or most <= FEWEST_POINTS:
            return
        most = max(min(most // 2, int(most * CURVE_BUDGET / size)), FEWEST_POINTS)


# -- HTML -------------------------------------------------------------------------------------------------


def as_html(data: dict[str, Any]) -> str:
    """One file that needs no other and no network, which its content security policy forbids."""
    style = _asset("vendor/uPlot.min.css") + "\n" + _asset("page.css")
    library, script = _asset("vendor/uPlot.iife.min.js"), _asset("page.js")
    parts = {
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(library)} {_hash(script)}; base-uri 'none'; form-action 'none'",
        "style": style,
        "library": library,
        "script": script,
        # In a script element only `<` could end it or begin a comment.
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    html = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _asset("page.html"))
    return html.encode("utf-8", "replace").decode()  # half a character in a sentence cannot be written


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
