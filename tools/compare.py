"""Compare runs at a glance: a table on the terminal, and one HTML page with curves and samples.

    python -m tools.compare                                    # all of runs/
    python -m tools.compare runs/cifar 'runs/sweep-*' results/cifar-speedrun.json
    python -m tools.compare "LSTM=runs/translation/de-en-lstm" "Transformer=runs/translation/de-en" --watch

The page needs no network and no other file. Runs that differ in their seed alone are one row, with mean and
standard deviation; runs that are going on or were cut off are shown as such.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from tools.comparison.page import as_html, by_script, page_data, title_of
from tools.comparison.runs import Found, Run, find_runs
from tools.comparison.table import Table, as_text, compare, compared_settings
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.ranges import PositiveInt
from training.run_folder import write_whole, writing


def write_comparison(found: Found, output: Path, values: Sequence[str] = (), reload: int = 0) -> None:
    """Write the page of the runs, all of it or nothing. Raises UsageError where it cannot be written."""
    html = as_html(page_data(found.runs, found.warnings, values, reload))
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, html)


def check_values(runs: Sequence[Run], values: Sequence[str]) -> None:
    """Raise UsageError for a value that none of the runs has."""
    known = {name for run in runs for name in (*run.summary, *(key for row in run.rows for key in row))}
    for value in values:
        if value not in known:
            has = ", ".join(sorted(name for name in known if "/" in name)) or "nothing yet"
            raise UsageError(f"--values {value}: none of the runs has it; they have {has}")


def tables_text(runs: Sequence[Run], values: Sequence[str]) -> str:
    """The tables for a terminal, one a script."""
    scripts = by_script(runs)
    parts = []
    for script, of_script in scripts.items():
        heading = f"{title_of(script)}\n\n" if len(scripts) > 1 else ""
        parts.append(heading + as_text(compare(of_script, values=values)))
    return "\n\n".join(parts)


def write_rows(runs: Sequence[Run], path: Path, values: Sequence[str]) -> None:
    """The tables as JSON: what remains of an ablation when the folders of its runs are gone."""
    tables = [compare(of_script, values=values) for of_script in by_script(runs).values()]
    rows = [row for table in tables for row in _as_data(table)]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n")


def _as_data(table: Table) -> list[dict]:
    return [
        {
            "name": row.name,
            "settings": {key: compared_settings(row.runs[0]).get(key) for key in table.settings},
            "numbers": {key: cell.value for key, cell in row.numbers.items()},
            "seeds": [run.seed for run in row.runs],
            "command": row.runs[0].summary.get("command"),
            "commit": row.runs[0].summary.get("git_commit"),
        }
        for row in table.rows
    ]


def keep_writing(arguments: Sequence[str], output: Path, values: Sequence[str], every: int) -> None:
    """Write the page anew whenever a run has moved on, until Ctrl-C."""
    shown = None
    while True:
        try:
            found = find_runs(arguments)
            state = _state(found.runs)
            if state != shown:
                write_comparison(found, output, values, reload=every)
                print(f"{time.strftime('%H:%M:%S')} {output}: {_in_short(found.runs)}", flush=True)
        except UsageError as error:  # no run yet, or one that is just being moved away
            state = str(error)
            if state != shown:
                print(f"{time.strftime('%H:%M:%S')} waiting: {error}", flush=True)
        shown = state
        time.sleep(every)


def _state(runs: Sequence[Run]) -> list:
    """What of the runs the page shows, short enough to compare."""
    return [(run.name, run.status, len(run.rows), run.rows[-1:], sorted(run.summary)) for run in runs]


def _in_short(runs: Sequence[Run]) -> str:
    states = [run.status for run in runs]
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def main(
    runs: Positional[tuple[str, ...]] = (),
    values: tuple[str, ...] = (),
    output: PathFlag = "comparison.html",
    json_file: PathFlag = "",
    watch: bool = False,
    every: PositiveInt = 10,
) -> None:
    """Compare runs in a table and in one HTML page.

    Args:
        runs: folders of runs or of groups of them, globs, records of results/, each also as NAME=PATH; none: runs/
        values: numbers to show, as metrics.jsonl and summary.json name them; none: all
        output: HTML file to write
        json_file: JSON file to write the rows of the tables into as well
        watch: go on, and write the page anew whenever a run has moved on
        every: seconds between two looks, and after which the page loads itself anew
    """
    try:
        if watch:
            keep_writing(runs, Path(output), values, every)
        found = find_runs(runs)
        check_values(found.runs, values)
        write_comparison(found, Path(output), values)
        if json_file:
            write_rows(found.runs, Path(json_file), values)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for line in found.warnings:
        print(f"warning: {line}", file=sys.stderr)
    print(tables_text(found.runs, values))
    print(f"\n{output}: curves, samples, settings, hardware and commits of {len(found.runs)} run(s)")


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main), stdout_is_the_result=True)
