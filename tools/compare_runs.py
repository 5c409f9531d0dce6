"""The final numbers of several runs in one table, each with the settings in which it differs from the first.

    python -m tools.compare_runs "plain=runs/plain" "label dropout=runs/dropout" \\
        --values test/elbo test/wrong_label_hits --output results/cvae-levers.json

The table is Markdown. The file holds the same with every run's command and commit, and is what remains of an
ablation when the runs' folders are gone. `tools.plot_runs` draws the curves.
"""

import json
import sys
from pathlib import Path

from tyro.conf import Positional

from tools.plot_runs import named_paths
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.metrics import readable_name, shown

NOT_COMPARED = {
    "output_dir",
    "resume",
    "resume_changes",
    "tracker",
    "log_every",
    "evaluate_every",
    "validate_every",
    "checkpointing_steps",
    "checkpoints_total_limit",
}


def compare(runs: dict[str, Path], values: tuple[str, ...]) -> list[dict]:
    """A row for each of `runs` (name: folder): name, settings, numbers, command, commit.

    `settings` are those that differ from the first run's, of the first one all in which any other differs. Raises
    UsageError for a run that has not ended, is of another script, or has none of a value.
    """
    configs, summaries = [], []
    for path in runs.values():
        if not (path / "summary.json").is_file():
            raise UsageError(f"{path} has no summary.json: let the run end first, or name another folder")
        configs.append(json.loads((path / "config.json").read_text()))
        summaries.append(json.loads((path / "summary.json").read_text()))
    first = configs[0]
    differing = {key for config in configs for key in first if config.get(key) != first[key]} - NOT_COMPARED
    rows = []
    for (name, path), config, summary in zip(runs.items(), configs, summaries, strict=True):
        if config.keys() != first.keys():
            raise UsageError(f"{path} is of another script than the first run: compare those of one script")
        missing = [value for value in values if value not in summary]
        if missing:
            raise UsageError(
                f"{path} has no {missing[0]}; it has {', '.join(key for key in summary if '/' in key)}"
            )
        own = [key for key in first if key in differing and (config is first or config[key] != first[key])]
        row = {
            "name": name,
            "settings": {key: config[key] for key in own},
            "numbers": {value: summary[value] for value in values},
            "command": summary["command"],
            "commit": summary["git_commit"],
        }
        rows.append(row)
    return rows


def as_table(rows: list[dict]) -> str:
    """Markdown: a row a run, its name, settings and numbers, named and shown as training/metrics.py says."""
    values = list(rows[0]["numbers"])
    names = [readable_name(value) for value in values]
    lines = [f"| run | settings | {' | '.join(names)} |", "|---|---|" + "---:|" * len(values)]
    for row in rows:
        settings = ", ".join(f"{key} {value}" for key, value in row["settings"].items())
        numbers = " | ".join(shown(value, row["numbers"][value]) for value in values)
        lines.append(f"| {row['name']} | {settings} | {numbers} |")
    return "\n".join(lines)


def main(runs: Positional[tuple[str, ...]], values: tuple[str, ...], output: PathFlag = "") -> None:
    """Put the final numbers of several runs in one table.

    Args:
        runs: NAME=PATH of each run, the path of its folder
        values: numbers to show, as summary.json names them
        output: JSON file to write as well
    """
    try:
        rows = compare(named_paths(runs), values)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if output:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(as_table(rows))


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main), stdout_is_the_result=True)
