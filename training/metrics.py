"""What is known of each metric: its readable name, its unit, its digits, and whether more is better.

A metric is logged as "<split>/<name>". A name that is not in the table, such as "dice_border" of a class or
"token_accuracy", is known by the longest entry that its words hold.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.errors import UsageError


@dataclass(frozen=True)
class Metric:
    label: str  # as figures and tables call it
    more_is_better: bool = False
    digits: int | None = 3  # behind the point; None: five significant ones
    factor: float = 1.0  # what a value is multiplied by to be shown
    unit: str = ""  # put behind the value


METRICS = {
    # of every script
    "loss": Metric("loss"),
    "lr": Metric("learning rate", digits=None),
    "gradient_norm": Metric("gradient norm"),
    "train_seconds": Metric("training time", digits=1, factor=1 / 60, unit=" min"),
    "n_parameters": Metric("parameters", digits=0),
    # translation
    "nll": Metric("negative log-likelihood", unit=" nats/token"),
    "divergence": Metric("KL divergence of two predictions", unit=" nats/token"),
    "bleu": Metric("BLEU", more_is_better=True, digits=1),
    "bleu_without_near_duplicates": Metric("BLEU without near-duplicates", more_is_better=True, digits=1),
    "chrf": Metric("chrF", more_is_better=True, digits=1),
    "match": Metric("match", more_is_better=True, digits=2, factor=100, unit=" %"),
    # classification
    "accuracy": Metric("accuracy", more_is_better=True, digits=2, factor=100, unit=" %"),
    # segmentation
    "dice": Metric("Dice", more_is_better=True, digits=4),
    "iou": Metric("IoU", more_is_better=True, digits=4),
    # VAE
    "elbo": Metric("ELBO", more_is_better=True, digits=2, unit=" nats"),
    "iw_bound": Metric("importance-weighted bound", more_is_better=True, digits=2, unit=" nats"),
    "reconstruction": Metric("reconstruction", digits=2, unit=" nats"),
    "kl": Metric("KL divergence", digits=2, unit=" nats"),
    "bits_per_dim": Metric("bits/dim"),
    "wrong_label_hits": Metric("label hits under a wrong label", True, digits=1, factor=100, unit=" %"),
    "prior_hits": Metric("label hits from the prior", True, digits=1, factor=100, unit=" %"),
    "classifier_accuracy": Metric("accuracy of the judge", True, digits=2, factor=100, unit=" %"),
}
SPLITS = {
    "train": "training",
    "valid": "validation",
    "valid_mean": "validation of averaged checkpoints",
    "test": "test",
    "test_extra": "second test set",
}
VIEWS = "over test-time views"  # what "_views" at the end of a name says


def metric(name: str) -> Metric:
    """What is known of "valid/bleu" or "bleu"; of an unknown name that its words are its label."""
    words = name.rpartition("/")[2].split("_")
    known, before, after = _longest_entry(words) or (Metric(words[0], digits=None), [], words[1:])
    if after[-1:] == ["views"]:
        after[-1] = VIEWS
    label = " ".join([*before, known.label, *after])
    return replace(known, label=label)


def _longest_entry(words: list[str]) -> tuple[Metric, list[str], list[str]] | None:
    """The entry of the most words that follow each other in `words`, and what stands before and after it."""
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            end = start + length
            known = METRICS.get("_".join(words[start:end]))
            if known is not None:
                return known, words[:start], words[end:]
    return None


def readable_name(name: str) -> str:
    """`train/tokens_per_second` becomes `training: tokens per second`."""
    split, _, _ = name.rpartition("/")
    label = metric(name).label
    return f"{SPLITS.get(split, split)}: {label}" if split else label


def shown(name: str, value: float) -> str:
    """A value as a table shows it: `shown("test/accuracy", 0.9351)` is "93.51 %"."""
    known = metric(name)
    number = f"{value:.5g}" if known.digits is None else f"{known.factor * value:,.{known.digits}f}"
    return number + known.unit


def better_by(*names: str) -> Callable[[Mapping[str, float], Mapping[str, float]], bool]:
    """A function of (metrics, best): whether the metrics beat the best by the first of `names` that differs.

    Whether more of a metric is better its entry in `METRICS` says; of one without an entry a sign before the name
    does: `better_by("+boundary_f1", "loss")`. A best that lacks the metric, as one of a run from before it was
    there, is beaten. Raises ValueError for a name with neither sign nor entry.
    """
    more_is_better: dict[str, bool] = {}
    for name in names:
        if name.startswith(("+", "-")):
            more_is_better[name[1:]] = name.startswith("+")
        elif _longest_entry(name.split("_")):
            more_is_better[name] = metric(name).more_is_better
        else:
            raise ValueError(f"is more of {name} better? Write +{name} or -{name}, or give it a row in METRICS")

    def is_better(metrics: Mapping[str, float], best: Mapping[str, float]) -> bool:
        for name, more in more_is_better.items():
            if name not in best:
                return True
            if metrics[name] != best[name]:
                return (metrics[name] > best[name]) == more
        return False

    return is_better


def prefixed(split: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers, as they are logged: "<split>/<name>"."""
    return {f"{split}/{name}": value for name, value in metrics.items() if not isinstance(value, str)}


def read_metrics(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl` merged into one dict per step, by rising step; later values override.

    The lines of a record of several runs have a `seed`; those of each seed are kept apart, one after another.
    Raises UsageError for a line that is no JSON object with a `step`, except a last line cut short by a kill.
    """
    *lines, tail = path.read_bytes().split(b"\n")
    rows: dict[tuple[int, int], dict] = {}
    for number, line in enumerate([*lines, tail] if tail else lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number > len(lines):  # no newline at its end: a killed run was still writing it
                break
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UsageError(f"{path}, line {number}: not a JSON object with a whole `step`; delete the line")
        rows.setdefault((row.get("seed", 0), row["step"]), {}).update(row)
    return [rows[key] for key in sorted(rows)]
