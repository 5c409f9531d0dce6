"""Keep a finished run as a record in results/, and make README's table from the records.

    python -m tools.record runs/translation/demo translation-demo --note "what was measured"
    python -m tools.record --readme

A record is `results/NAME.json` (command, commit, hardware, settings, numbers) beside `NAME.metrics.jsonl`, the
curve that its figures are drawn from, and `NAME.log`, what the run printed, where a log is given.
"""

import json
import platform
import re
import sys
from pathlib import Path

import tyro
from tyro.conf import Positional

from training.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "results", ROOT / "README.md"
BEGIN, END = "<!-- results: made by `python -m tools.record --readme` -->", "<!-- end of results -->"


def cpu_name() -> str:
    """The processor as the system names it, and the number of its cores."""
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def log_lines(log: str) -> list[str]:
    """A terminal's output without the states that the progress bar overwrote."""
    lines = [line.split("\r")[-1].rstrip() for line in log.replace("\r\n", "\n").split("\n")]
    return [line for line in lines if line and not re.match(r"\s*\d+%\|", line)]


def write_record(run: Path, name: str, note: str, log: str, launch: str) -> Path:
    """Write results/NAME.json, .metrics.jsonl and .log from a finished run's folder. Returns the first."""
    if not (run / "summary.json").exists():
        raise UsageError(f"{run} has no summary.json: let the run end first, or name another folder")
    summary = json.loads((run / "summary.json").read_text())
    config = json.loads((run / "config.json").read_text())
    device = summary["device"]
    record = {
        "name": name,
        "note": note,
        "command": f"{launch} {summary.pop('command')}".strip(),
        "commit": summary.pop("git_commit"),
        "hardware": cpu_name() if device.startswith("CPU") else device,
        "seed": config["seed"],
        "recipe": config["recipe"],
        "numbers": summary,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    if log:
        lines = log_lines(Path(log).read_text(encoding="utf-8", errors="replace"))
        (RESULTS / f"{name}.log").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def results_table() -> str:
    """README's table: a row a record."""
    rows = ["| what | script and recipe | test | training time | hardware | precision | commit |", "|" + "---|" * 7]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "recipe" not in record:  # a benchmark's rounds
            continue
        n = record["numbers"]
        script = re.search(r"train_\w+\.py", record["command"])[0]
        shown = {"test/bleu": "BLEU {:.1f}", "test/chrf": "chrF {:.1f}", "test/accuracy": "accuracy {:.2%}"}
        test = ", ".join(text.format(n[key]) for key, text in shown.items() if key in n)
        rows.append(
            f"| [{record['note']}](results/{path.name}) | `{script} {record['recipe']}` | {test} | "
            f"{n['train_seconds'] / 60:.1f} min | {record['hardware']} | {n['mixed_precision']} | "
            f"`{(record['commit'] or 'none')[:10]}` |"
        )
    return "\n".join(rows)


def readme_with_table(readme: str) -> str:
    """The README with its table made anew. Raises UsageError if the markers are gone."""
    if BEGIN not in readme or END not in readme:
        raise UsageError(f"README.md has no line {BEGIN!r} or {END!r}: put them where the table belongs")
    before, rest = readme.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{results_table()}\n{END}{rest.split(END, 1)[1]}"


def main(
    run: Positional[str] = "",
    name: Positional[str] = "",
    note: str = "",
    log: str = "",
    launch: str = "accelerate launch --config_file accelerate_configs/cpu.yaml",
    readme: bool = False,
) -> None:
    """Write a record of a run, or README's table.

    Args:
        run: folder of a finished run
        name: name of the record
        note: what was measured, for the table
        log: file with what the run printed
        launch: what stood before the script's name on the command line
        readme: only make README's table anew
    """
    try:
        if run:
            print(write_record(Path(run), name or Path(run).name, note, log, launch))
        if readme or run:
            README.write_text(readme_with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    tyro.cli(main, use_underscores=True)
