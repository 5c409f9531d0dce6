"""The curves of a comparison, thinned to what a screen can show, of points that were measured."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tools.comparison.runs import Run
from training.metrics import METRICS

MOST_POINTS = 1000  # of a curve
FEWEST_POINTS = 40


def curve_names(runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Metrics of which some run has two points or more: the main ones, and the others.

    Main are the training loss and what METRICS has of validations and tests; counts are left out.
    """
    points: dict[str, int] = {}
    for run in runs:
        own: dict[str, int] = {}
        for row in run.rows:
            for name in row:
                if "/" in name or name == "lr":
                    own[name] = own.get(name, 0) + 1
        for name, count in own.items():
            points[name] = max(points.get(name, 0), count)
    names = [name for name, count in points.items() if count > 1 and not _is_count(name)]
    main = sorted((name for name in names if _is_main(name)), key=_order)
    return main, sorted((name for name in names if name not in main), key=_order)


def _is_count(name: str) -> bool:
    return name.rpartition("/")[2].startswith("n_")


def _is_main(name: str) -> bool:
    split, _, last = name.rpartition("/")
    return name == "train/loss" or (split in ("valid", "test") and last in METRICS)


def _order(name: str) -> tuple:
    split, _, last = name.rpartition("/")
    splits, known = ["train", "valid", "test"], list(METRICS)
    place = known.index(last) if last in METRICS else len(known)
    return splits.index(split) if split in splits else len(splits), place, name


def curves_of(run: Run, names: Sequence[str], most: int = MOST_POINTS) -> dict[str, Any]:
    """The run's curves as the page reads them: columns `step`, `epoch`, `time` and, by name, [places, values].

    `places` are those of the columns. Values are as metrics.jsonl has them; those that are not finite are left out.
    """
    picked: dict[str, np.ndarray] = {}
    for name in names:
        places = [i for i, row in enumerate(run.rows) if name in row and _is_finite(row[name])]
        if places:
            values = np.array([run.rows[i][name] for i in places], dtype=float)
            picked[name] = np.array(places)[thinned(values, most)]
    kept = np.unique(np.concatenate(list(picked.values()))) if picked else np.array([], dtype=int)
    rows = [run.rows[i] for i in kept]
    columns: dict[str, Any] = {
        key: [row[key] if _is_finite(row.get(key)) else None for row in rows] for key in ("step", "epoch", "time")
    }
    columns["curves"] = {
        name: [np.searchsorted(kept, places).tolist(), [run.rows[i][name] for i in places]]
        for name, places in picked.items()
    }
    return columns


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` of the values: first, last, and of each stretch its lowest and its highest."""
    n = len(values)
    if n <= most:
        return np.arange(n)
    stretch = math.ceil(n / ((most - 2) // 2))
    padded = np.pad(values, (0, -n % stretch), mode="edge").reshape(-1, stretch)
    starts = np.arange(len(padded)) * stretch
    places = np.concatenate([[0, n - 1], starts + padded.argmin(1), starts + padded.argmax(1)])
    return np.unique(places.clip(max=n - 1))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
