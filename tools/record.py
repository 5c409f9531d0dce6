"""Keep finished runs as a record in results/, and make the tables anew.

    python -m tools.record translation-demo runs/translation/demo --note "beside the tests" --log demo.log
    python -m tools.record cifar-ultimus runs/ultimus-seed0 runs/ultimus-seed1 runs/ultimus-seed2

`python -m tools.reproduce` does this at the end of the runs that it makes; by hand it is for runs that were made
otherwise. The name is that of an entry of results/records.yaml.

A record is `results/NAME.json` (command, commit, hardware, settings, numbers) beside `NAME.metrics.jsonl`, the
curve that its figures are drawn from, and `NAME.log`, what the run printed, where a log is given. Of several
runs that differ in their seed only, the numbers are means, and the standard deviations stand beside them. The
record of another commit that stood there goes to results/history/.
"""

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tyro.conf import Positional

from tools.published.catalogue import ROOT, Entry, named, read_catalogue
from tools.published.tables import write_tables
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.redaction import redacted
from training.run_folder import write_whole

MAY_DIFFER = {"seed", "output_dir", "resume", "resume_changes", "tracker"}  # between the runs of a record


def cpu_name() -> str:
    """The processor as the system names it, and the number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


# What `accelerate launch` ends with when its script does not end with 0, as after SIGTERM.
LAUNCHERS_TRACEBACK = re.compile(
    r"^Traceback \(most recent call last\):\n(?: .*\n)+subprocess\.CalledProcessError.*$", re.MULTILINE
)


def log_lines(log: str) -> list[str]:
    """A terminal's output without secrets, overwritten states of the progress bar and the launcher's traceback."""
    log = LAUNCHERS_TRACEBACK.sub("", redacted(log).replace("\r\n", "\n"))
    lines = [line.split("\r")[-1].rstrip() for line in log.split("\n")]
    return [line for line in lines if line and not re.match(r"\s*\d+%\|", line)]


def write_record(
    entry: Entry,
    runs: Sequence[Path],
    *,
    root: Path = ROOT,
    note: str = "",
    logs: Sequence[Path] = (),
    commands: Sequence[str] = (),
    commits: Sequence[str | None] = (),
    code: str | None = None,
    names: Mapping[str, str] | None = None,
) -> Path:
    """Write results/NAME.json, .metrics.jsonl and .log from the folders of an entry's finished runs.

    `commands` and `commits`: what was typed for each run, and its code's commit; without them, what its summary
    says. `code`: the fingerprint of what the runs were made by, where all were made by the same. `names`: what
    stands in the log for a text of this machine, such as the folder of the data. Returns the first file.

    Raises UsageError where a run has not ended, is not the entry's, or differs in more than its seed.
    """
    summaries, configs = [], []
    for run in runs:
        if not (run / "summary.json").exists():
            raise UsageError(f"{run} has no summary.json: let the run end first, or name another folder")
        summaries.append(json.loads((run / "summary.json").read_text(encoding="utf-8")))
        configs.append(json.loads((run / "config.json").read_text(encoding="utf-8")))
    differing = {key for config in configs for key in config if config[key] != configs[0].get(key)}
    if differing - MAY_DIFFER:
        raise UsageError(f"the runs differ in {', '.join(sorted(differing))}: a record is of one setting")
    if not commands:
        commands = [f"{entry.launched_by} {summary['command']}" for summary in summaries]
    commands = [redacted(command) for command in commands]
    if not commits:
        commits = [summary["git_commit"] for summary in summaries]
    ran = (re.findall(r"train_\w+\.py", summaries[0]["command"])[:1], configs[0]["recipe"])
    if ran != ([entry.script], entry.recipe):
        raise UsageError(f"{runs[0]} is no run of {entry.script} {entry.recipe}, which {entry.name} is made by")
    first = summaries[0]
    numbers = {key: _mean([summary.get(key) for summary in summaries]) for key in first}
    scores = [key for key in first if key.startswith("test/") and isinstance(first[key], float)]
    record = {
        "name": entry.name,
        "script": entry.script,
        "recipe": entry.recipe,
        "note": note,
        "chosen_on": entry.chosen_on,
        "command": commands[0],
        "commit": commits[0],
        "code": code,
        "hardware": cpu_name() if first["device"].startswith("CPU") else first["device"],
        "seeds": [config["seed"] for config in configs],
        "log": f"{entry.name}.log" if logs else None,
        "numbers": {key: value for key, value in numbers.items() if key not in ("command", "git_commit")},
        "std": {},
        "runs": [],
    }
    if len(runs) > 1:
        record["std"] = {key: statistics.stdev(summary[key] for summary in summaries) for key in scores}
        record["runs"] = [
            {key: summary[key] for key in (*scores, "train_seconds")} | {"git_commit": commit, "command": command}
            for summary, commit, command in zip(summaries, commits, commands, strict=True)
        ]
    results = root / "results"
    results.mkdir(exist_ok=True)
    _keep_older(results, entry.name, commits[0])
    lines = []
    for run, config in zip(runs, configs, strict=True):
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            lines.append(line if len(runs) == 1 else json.dumps({"seed": config["seed"], **json.loads(line)}))
    write_whole(results / f"{entry.name}.metrics.jsonl", "".join(f"{line}\n" for line in lines))
    if logs:
        printed = [line for log in logs for line in log_lines(log.read_text("utf-8", errors="replace"))]
        text = "\n".join(printed) + "\n"
        for here, name in (names or {}).items():
            text = text.replace(here, name)
        write_whole(results / f"{entry.name}.log", text)
    path = results / f"{entry.name}.json"
    write_whole(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def _keep_older(results: Path, name: str, commit: str | None) -> None:
    """Move the record of another commit to results/history/, with the commit in its files' names."""
    path = results / f"{name}.json"
    older = json.loads(path.read_text(encoding="utf-8"))["commit"] if path.exists() else commit
    if older != commit:
        (results / "history").mkdir(exist_ok=True)
        for ending in ("json", "metrics.jsonl", "log"):
            file = results / f"{name}.{ending}"
            if file.exists():
                file.rename(results / "history" / f"{name}-{(older or 'none')[:10]}.{ending}")


def _mean(values: list):
    """The mean of numbers; of anything else the first."""
    numeric = all(isinstance(value, int | float) for value in values)
    return statistics.mean(values) if numeric and len(set(values)) > 1 else values[0]


def main(
    name: Positional[str],
    runs: Positional[tuple[PathFlag, ...]],
    note: str = "",
    log: tuple[PathFlag, ...] = (),
) -> None:
    """Write a record of runs, and the tables.

    Args:
        name: name of the record, which results/records.yaml lists
        runs: folders of finished runs, several where they differ in their seed only
        note: what is to be known of these runs, for the table
        log: files with what the runs printed
    """
    try:
        (entry,) = named(read_catalogue(), [name])
        folders, logs = [Path(run) for run in runs], [Path(file) for file in log]
        print(write_record(entry, folders, note=note, logs=logs))
        write_tables()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
