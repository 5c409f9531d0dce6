"""The comparison of finished segmentation runs: one table, one figure of curves, the same pictures under all."""

import json
import statistics
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from figures.curves import new_figure, save_png
from figures.images import plot_image_grid, plot_table
from figures.segmentation import beside_overlays
from models.segmentation_scores import dice_of_images, pixel_confusion
from training.errors import UsageError
from training.metrics import metric, read_metrics, readable_name, shown

SCORES = ("test/dice", "test/dice_per_image", "test/iou", "test/iou_per_image", "test/pixel_accuracy")  # in summary
SCORES_OF_VIEWS = ("test/dice_views", "test/iou_views")  # shown where all runs have them
SPEED = "train/images_per_second"  # in metrics.jsonl, and shown likewise
CURVES = ("loss", "dice", "iou")  # of the training, and twice of the validation
LINE_STYLES = ("-", "--", "-.", ":")  # besides colours, for readers who cannot tell these apart
MAX_PICTURES = 8  # rows of comparison_predictions.png


@dataclass(frozen=True)
class FinishedRun:
    """What a run folder holds."""

    folder: Path
    summary: dict[str, Any]
    metrics: list[dict]  # by rising step
    images: np.ndarray  # (P, 3, S, S) uint8
    true_masks: np.ndarray  # (P, S, S) uint8
    predicted_masks: np.ndarray  # (P, S, S) uint8
    names: np.ndarray  # (P,) str
    class_names: np.ndarray  # (K,) str


def write_comparison(folder: Path, runs: Mapping[str, Path]) -> str:
    """Compare finished runs: write comparison.md and figures/comparison_{table,curves,predictions}.png.

    `runs`: of each variant, by name, its run folder with summary.json, metrics.jsonl and test_predictions.npz:
    `images` (P, 3, S, S), `true_masks` and `predicted_masks` (P, S, S), all uint8, and `names` (P,) of the same
    test pictures in all runs, and `class_names` (K,). Returns the Markdown.

    Raises `UsageError`, before anything is written, where a run folder lacks one of these or holds a damaged
    one, and where the runs were tested on different pictures.
    """
    if not runs:
        raise UsageError("there are no runs to compare: name at least one run folder")
    finished = {variant: read_run(run_folder) for variant, run_folder in runs.items()}
    first, *others = finished.values()
    for other in others:
        for name in ("class_names", "names", "images", "true_masks"):
            if not np.array_equal(getattr(first, name), getattr(other, name)):
                raise UsageError(
                    f"{first.folder} and {other.folder} were tested on different pictures (`{name}` in "
                    "test_predictions.npz differ): train both on the same data, image size and classes"
                )

    header, rows = _table(finished)
    figures = folder / "figures"
    plot_table(figures / "comparison_table.png", header, rows, title="The variants on the test split")
    _plot_curves(figures / "comparison_curves.png", finished)
    _plot_predictions(figures / "comparison_predictions.png", finished)
    markdown = _markdown(header, rows, first.class_names.tolist())
    (folder / "comparison.md").write_text(markdown, encoding="utf-8")
    return markdown


# --- reading ---


def read_run(folder: Path) -> FinishedRun:
    """What `write_comparison` needs of a run folder, checked. Raises `UsageError` as that does."""
    summary = _read(folder / "summary.json", lambda path: json.loads(path.read_bytes()))
    for key in (*SCORES, "train_seconds", "n_parameters"):
        if not isinstance(summary, dict) or not isinstance(summary.get(key), int | float):
            raise UsageError(f"{folder / 'summary.json'} has no number `{key}`: train the run again")
    metrics = _read(folder / "metrics.jsonl", read_metrics)
    for name in CURVES:
        *_, needed = _names_of_curve(name)
        if not _curve(metrics, needed):
            raise UsageError(f"{folder / 'metrics.jsonl'} has no `{needed}` at any epoch: train the run again")
    return FinishedRun(folder, summary, metrics, **_read(folder / "test_predictions.npz", _read_predictions))


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except UsageError:
        raise
    except FileNotFoundError as error:
        raise UsageError(f"{path} is missing: let the run finish, or train it again") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} is damaged ({' '.join(str(error).split())}): train the run again") from error


def _read_predictions(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as opened, np.load(opened) as file:  # by name, NumPy leaves a damaged file open
        arrays = {name: file[name] for name in ("images", "true_masks", "predicted_masks", "names", "class_names")}
    images, names = arrays["images"], arrays["names"]
    shape = (len(names), *images.shape[-2:])
    fits = (
        names.ndim == 1
        and names.dtype.kind == "U"
        and images.shape == (shape[0], 3, *shape[1:])
        and arrays["true_masks"].shape == arrays["predicted_masks"].shape == shape
        and arrays["class_names"].ndim == 1
        and arrays["class_names"].dtype.kind == "U"
        and all(array.dtype == np.uint8 for name, array in arrays.items() if "names" not in name)
    )
    if not fits or not images.size:
        shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"arrays that do not fit: {shapes}")
    return arrays


# --- table ---


def _table(runs: Mapping[str, FinishedRun]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; test-time views and speed are columns where every run has them."""
    names = list(SCORES)
    names += [name for name in SCORES_OF_VIEWS if all(name in run.summary for run in runs.values())]
    names += ["train_seconds", "n_parameters"]
    speeds = {variant: [row[SPEED] for row in run.metrics if SPEED in row] for variant, run in runs.items()}
    has_speed = all(speeds.values())
    header = ["variant", *(metric(name).label for name in names)]
    if has_speed:
        header.append(metric(SPEED).label)
    rows = []
    for variant, run in runs.items():
        row = [variant, *(shown(name, run.summary[name]) for name in names)]
        if has_speed:  # the median: the first window holds the warm-up
            row.append(shown(SPEED, statistics.median(speeds[variant])))
        rows.append(row)
    return header, rows


def _of_classes(class_names: Sequence[str]) -> str:
    """What a Dice or IoU is of."""
    return class_names[1] if len(class_names) == 2 else f"the {len(class_names)} classes, as a mean"


def _markdown(header: list[str], rows: list[list[str]], class_names: Sequence[str]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"""# Comparison of {len(rows)} segmentation runs

{table}

The classes are {", ".join(class_names)}; Dice and IoU are of {_of_classes(class_names)}.

The scores are those of the final evaluation on the test split: from the pixels of all pictures together; "per \
image": the mean over the pictures; "over test-time views": with test-time augmentation, which the others are \
without. Training time and images per second (the median over the training) compare only between runs on like \
machines.

![Curves](figures/comparison_curves.png)

![Predictions](figures/comparison_predictions.png)
"""


# --- figures ---


def _names_of_curve(name: str) -> tuple[str, ...]:
    """The names that a run may have logged it under, the preferred one first; the last one every run has.

    A run without a validation split has scores on the test split alone: at its end, in older runs at each epoch.
    """
    return ("train/loss",) if name == "loss" else (f"valid/{name}", f"test/{name}")


def _curve(metrics: Sequence[dict], name: str) -> list[tuple[float, float]]:
    """(epoch, value) of each line that has both."""
    return [(row["epoch"], row[name]) for row in metrics if name in row and "epoch" in row]


def _plot_curves(path: Path, runs: Mapping[str, FinishedRun]) -> None:
    figure = new_figure(width=14, height=4.8)
    for ax, curve in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        names = _names_of_curve(curve)
        name = next(name for name in names if all(_curve(run.metrics, name) for run in runs.values()))
        for index, (variant, run) in enumerate(runs.items()):
            points = _curve(run.metrics, name)
            ax.plot(
                *zip(*points, strict=True),
                linestyle=LINE_STYLES[index % len(LINE_STYLES)],
                marker="." if len(points) <= 50 else "",  # a single point draws no line
                label=f"{variant} (test Dice {shown('test/dice', run.summary['test/dice'])})",
            )
        note = "\n(compares only between runs of the same loss)" if curve == "loss" else ""
        ax.set_title(readable_name(name) + note, fontsize=10)
        ax.set_xlabel("epoch")
        ax.grid(alpha=0.3)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(runs), 6))
    save_png(figure, path)


def _plot_predictions(path: Path, runs: Mapping[str, FinishedRun]) -> None:
    """Rows are pictures; columns are the picture, its true mask, and the mask of each variant with its Dice."""
    first = next(iter(runs.values()))
    chosen = np.linspace(0, len(first.names) - 1, min(MAX_PICTURES, len(first.names))).round().astype(int)
    images = torch.from_numpy(first.images[chosen])
    true, predicted = first.true_masks[chosen], [run.predicted_masks[chosen] for run in runs.values()]
    masks = [torch.from_numpy(mask) for mask in (true, *predicted)]
    class_names = first.class_names.tolist()
    counts = [pixel_confusion(mask, masks[0], len(class_names)) for mask in masks[1:]]
    dice = [dice_of_images(of_variant).tolist() for of_variant in counts]
    titles = [
        text for row in zip(*dice, strict=True) for text in ("", "", *(f"Dice {shown('dice', d)}" for d in row))
    ]
    columns = ["picture", "true mask", *runs]
    plot_image_grid(
        path,
        beside_overlays(images, masks, len(columns)),
        titles,
        n_columns=len(columns),
        column_labels=columns,
        row_labels=first.names[chosen].tolist(),
        title=f"The same test pictures under each variant, with the Dice of {_of_classes(class_names)}",
    )
