"""What the tests of the training scripts share: reading a run's folder, and killing a run."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from training.metrics import read_metrics


class Killed(BaseException):
    """Raised in the place of a kill: no script catches it."""


def summary(output_dir: Path) -> dict:
    return json.loads((output_dir / "summary.json").read_text())


def final_weights(output_dir: Path) -> dict[str, torch.Tensor]:
    last = max((output_dir / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    return load_file(last / "model.safetensors")


def edit_config(checkpoint: Path, edit: Callable[[dict], object]) -> None:
    """Change the config that a checkpoint holds, in place, and its manifest with it."""
    state = json.loads((checkpoint / "state.json").read_text())
    edit(state["config"])
    text = json.dumps(state)
    (checkpoint / "state.json").write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = [len(text), hashlib.sha256(text.encode()).hexdigest()]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def curve(output_dir: Path) -> list[dict]:
    """The metrics, without what depends on the clock."""
    return [
        {name: value for name, value in line.items() if name != "time" and not name.endswith("_per_second")}
        for line in read_metrics(output_dir / "metrics.jsonl")
    ]
