"""Keep finished runs as a record in results/, and make README's table from the records.

    python -m tools.record translation-demo runs/translation/demo --note "what was measured"
    python -m tools.record cifar-ultimus runs/ultimus-seed0 runs/ultimus-seed1 runs/ultimus-seed2 --note ".."
    python -m tools.record --readme

A record is `results/NAME.json` (command, commit, hardware, settings, numbers) beside `NAME.metrics.jsonl`, the
curve that its figures are drawn from, and `NAME.log`, what the run printed, where a log is given. Of several
runs that differ in their seed only, the numbers are means, and the standard deviations stand beside them.
"""

import json
import platform
import re
import statistics
import sys
from pathlib import Path

from tyro.conf import Positional

from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.metrics import SPLITS, metric

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "results", ROOT / "README.md"
HEADLINES = (  # the metrics of README's table, in its order
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


def write_record(runs: list[Path], name: str, note: str, logs: list[str], launch: str) -> Path:
    """Write results/NAME.json, .metrics.jsonl and .log from the folders of finished runs. Returns the first.

    Raises UsageError where a run has not ended, or where several differ in more than their seed.
    """
    summaries, configs = [], []
    for run in runs:
        if not (run / "summary.json").exists():
            raise UsageError(f"{run} has no summary.json: let the run end first, or name another folder")
        summaries.append(json.loads((run / "summary.json").read_text()))
        configs.append(json.loads((run / "config.json").read_text()))
    differing = {key for config in configs for key in config if config[key] != configs[0][key]}
    if differing - {"seed", "output_dir", "resume", "resume_changes", "tracker"}:
        raise UsageError(f"the runs differ in {', '.join(sorted(differing))}: a record is of one setting")
    first = summaries[0]
    numbers = first if len(runs) == 1 else {key: _mean([s[key] for s in summaries]) for key in first}
    record = {
        "name": name,
        "note": note,
        "command": f"{launch} {first['command']}".strip(),
        "commit": first["git_commit"],
        "hardware": cpu_name() if first["device"].startswith("CPU") else first["device"],
        "seed": configs[0]["seed"],
        "recipe": configs[0]["recipe"],
        "numbers": {key: value for key, value in numbers.items() if key not in ("command", "git_commit")},
    }
    if len(runs) > 1:
        tests = [key for key in first if key.startswith("test/") and isinstance(first[key], float)]
        record["seeds"] = [config["seed"] for config in configs]
        record["std"] = {key: statistics.stdev(s[key] for s in summaries) for key in tests}
        record["runs"] = [
            {key: s[key] for key in (*tests, "train_seconds", "git_commit", "command")} for s in summaries
        ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = []
    for run, config in zip(runs, configs, strict=True):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            lines.append(line if len(runs) == 1 else json.dumps({"seed": config["seed"], **json.loads(line)}))
    (RESULTS / f"{name}.metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if logs:
        printed = [line for log in logs for line in log_lines(Path(log).read_text("utf-8", errors="replace"))]
        (RESULTS / f"{name}.log").write_text("\n".join(printed) + "\n", encoding="utf-8")
    return path


def _mean(values: list):
    """The mean of numbers; of anything else the first."""
    numeric = all(isinstance(value, int | float) for value in values)
    return statistics.mean(values) if numeric and len(set(values)) > 1 else values[0]


def _shown(key: str, record: dict) -> str:
    """A number of the record as the table shows it, with its standard deviation over the seeds."""
    known = metric(key)
    assert known.digits is not None  # headlines are in the table
    label = known.label
    if key.startswith("test_extra/"):
        label += f" on the {SPLITS['test_extra']}"
    text = f"{label} {known.factor * record['numbers'][key]:.{known.digits}f}"
    if "std" in record:
        text += f" ± {known.factor * record['std'][key]:.{max(known.digits, 2)}f}"
    text += known.unit
    return f"{text} (n = {len(record['seeds'])})" if "seeds" in record else text


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def results_table() -> str:
    """README's table: a row a record."""
    rows = ["| what | script and recipe | test | training time | hardware | precision | commit |", "|" + "---|" * 7]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "recipe" not in record:  # a benchmark's rounds
            continue
        n = record["numbers"]
        script = re.findall(r"train_\w+\.py", record["command"])[0]
        test = ", ".join(_shown(key, record) for key in HEADLINES if key in n)
        rows.append(
            f"| [{record['note']}](results/{path.name}) | `{script} {record['recipe']}` | {test} | "
            f"{_duration(n['train_seconds'])} | {record['hardware']} | {n['mixed_precision']} | "
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
    name: Positional[str] = "",
    runs: Positional[tuple[PathFlag, ...]] = (),
    note: str = "",
    log: tuple[PathFlag, ...] = (),
    launch: str = "accelerate launch --config_file accelerate_configs/cpu.yaml",
    readme: bool = False,
) -> None:
    """Write a record of runs, and README's table.

    Args:
        name: name of the record
        runs: folders of finished runs, several where they differ in their seed only
        note: what was measured, for the table
        log: files with what the runs printed
        launch: what stood before the script's name on the command line
        readme: only make README's table anew
    """
    try:
        if runs:
            print(write_record([Path(run) for run in runs], name, note, list(log), launch))
        elif not readme:
            raise UsageError("name the record and the folder of a run, or give --readme")
        README.write_text(readme_with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
