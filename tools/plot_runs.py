"""Draw the curves of several runs, or of their records, in one figure.

    python -m tools.plot_runs "bucketed=runs/bucketed" "sorted=runs/sorted" --values train/loss valid/nll \\
        --output comparison.png
    python -m tools.plot_runs "SpeedNet=results/cifar-speedrun.metrics.jsonl" --values test/accuracy

Each run has a name, which the legend gives with its time an epoch, and a path: a run's folder or a metrics.jsonl.
The runs of a record of several seeds are drawn in one colour.
"""

import itertools
import sys
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from figures.curves import new_figure, save_png
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.metrics import read_metrics, readable_name

AXES = {"epoch": "epoch", "minutes": "minutes, validation included", "step": "step (updates)"}


def named_paths(runs: tuple[str, ...]) -> dict[str, Path]:
    """NAME=PATH of each run -> {name: path}. UsageError where a name or a path is missing or a name comes twice."""
    named = [run.partition("=") for run in runs]
    if any(not name or not path for name, _, path in named) or len({name for name, _, _ in named}) < len(named):
        raise UsageError(f"{' '.join(runs)}: give each run as NAME=PATH, with names that differ")
    return {name: Path(path).expanduser() for name, _, path in named}


def read_runs(path: Path) -> list[list[dict]]:
    """The metrics of a run's folder or of a metrics.jsonl, of each seed by itself, by rising step.

    Each row has `step`, and `minutes` where it has `time` (seconds). UsageError: a missing or damaged file.
    """
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"{path} is missing: name a run's folder, or the .metrics.jsonl of a record")
    rows = [row | {"minutes": row["time"] / 60} if "time" in row else row for row in read_metrics(path)]
    return [list(of_seed) for _, of_seed in itertools.groupby(rows, key=lambda row: row.get("seed"))]


def plot_runs(runs: dict[str, Path], values: tuple[str, ...], over: str, title: str, output: Path) -> None:
    """Write a PNG with a panel for each of `values` and a curve for each of `runs` (name: path).

    Raises UsageError where a run has none of a value.
    """
    figure = new_figure(width=6.5 * len(values), height=4.5)
    if title:
        figure.suptitle(title)
    panels = figure.subplots(1, len(values), squeeze=False)[0]
    for index, (name, path) in enumerate(runs.items()):
        of_seeds = read_runs(path)
        timed = [row for row in of_seeds[0] if row.get("time") and row.get("epoch")]
        label = f"{name} ({timed[-1]['minutes'] / timed[-1]['epoch']:.1f} min an epoch)" if timed else name
        for ax, value in zip(panels, values, strict=True):
            for seed, rows in enumerate(of_seeds):
                points = [(row[over], row[value]) for row in rows if value in row and over in row]
                if not points:
                    has = sorted({key for row in rows for key in row if "/" in key})
                    raise UsageError(f"{path} has no {value} over {over}; it has {', '.join(has)}")
                ax.plot(
                    *zip(*points, strict=True),
                    color=f"C{index % 10}",
                    label=None if seed else label,
                    marker="." if len(points) <= 50 else "",
                    linewidth=1.2,
                )
    for ax, value in zip(panels, values, strict=True):
        ax.set_title(readable_name(value), fontsize=11)
        ax.set_xlabel(AXES[over])
        ax.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 4))
    save_png(figure, output)


def main(
    runs: Positional[tuple[str, ...]],
    values: tuple[str, ...] = ("train/loss",),
    over: Literal["epoch", "minutes", "step"] = "epoch",
    title: str = "",
    output: PathFlag = "curves.png",
) -> None:
    """Draw the curves of several runs in one figure.

    Args:
        runs: NAME=PATH of each run, the path of its folder or of a metrics.jsonl
        values: what to draw, a panel each, as metrics.jsonl names them
        over: what the horizontal axis is
        title: of the whole figure
        output: PNG file to write
    """
    try:
        plot_runs(named_paths(runs), values, over, title, Path(output))
        print(output)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
