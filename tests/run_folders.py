"""What the tests of the training scripts share: reading a run's folder, and killing a run."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from training.figures import read_metrics


class Killed(BaseException):
    """Raised in the place of a kill: no script catches it."""


def summary(output_dir: Path) -> dict:
    return json.loads((output_dir / "summary.json").read_text())


def final_weights(output_dir: Path) -> dict[str, torch.Tensor]:
    last = max((output_dir / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return load_file(last / "model.safetensors")


def curve(output_dir: Path) -> list[dict]:
    """The metrics, without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name != "time" and not name.endswith("_per_second")}
        for line in read_metrics(output_dir / "metrics.jsonl")
    ]
