"""Opening a finished run: its best checkpoint, the settings that it was trained with, what it keeps of its data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from training.checkpoints import checkpoint_of_run, load_weights, read_state
from training.errors import UsageError
from training.resuming import saved_settings
from training.run import RunConfig

C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=nn.Module)

# A flag that only one script has: it tells whose a config is, also in checkpoints that do not name their script.
FLAG_OF_SCRIPT = {"translation": "max_tokens", "unet": "upsampling", "cvae": "latent_dim", "cifar": "cutout"}


@dataclass(frozen=True)
class FinishedRun(Generic[C]):
    """A run of train_<script>.py, by one of its checkpoints. `config` is of the script's Config."""

    script: str
    checkpoint: Path
    config: C

    @property
    def folder(self) -> Path:
        """The run's folder. Of a checkpoint that was copied elsewhere, what lies two levels above it."""
        return self.checkpoint.absolute().parents[1]

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the checkpoint keeps of images that it was trained on: "class_names", "image_size", ..

        Raises UsageError where it keeps nothing.
        """
        path = self.checkpoint / "data.json"
        if not path.exists():
            raise UsageError(f"{self.checkpoint} is not of train_{self.script}.py: it holds no data.json")
        return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the run wrote into summary.json at its end; nothing of one that goes on, or of a lone checkpoint."""
        return summary_of_checkpoint(self.checkpoint)

    def load(self, model: M, device: torch.device) -> M:
        """`model`, built as `config` says, with the trained weights, or their average where there is one.

        On `device`, for evaluation.
        """
        load_weights(model, self.checkpoint)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
        return model.eval()


def summary_of_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """The summary.json of the run that a checkpoint lies in; nothing where there is none."""
    try:
        return json.loads((checkpoint.absolute().parents[1] / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def script_of_run(run: str | Path) -> str:
    """Which script a run folder, or one checkpoint, is of: "translation", "unet", "cvae" or "cifar".

    Raises UsageError where there is no sound checkpoint, and where it is of none of them.
    """
    checkpoint = checkpoint_of_run(run)
    script = _script_of_state(read_state(checkpoint))
    if script is None:
        raise UsageError(f"{checkpoint} is of none of the training scripts: name the folder of a run")
    return script


def open_run(
    run: str | Path, script: str, kind: type[C], old_rules: Mapping[str, Any] = MappingProxyType({})
) -> FinishedRun[C]:
    """The run of `script` ("cifar", ..) that a run folder holds, by its best checkpoint, or of one checkpoint.

    `kind` is the script's Config; `old_rules` are what held in runs of before a field was there, where that is not
    its default. Raises UsageError where there is no sound checkpoint, and where it is of another script.
    """
    checkpoint = checkpoint_of_run(run)
    state = read_state(checkpoint)
    theirs = _script_of_state(state)
    if theirs != script:
        of = f"of train_{theirs}.py, " if theirs else ""
        raise UsageError(f"{checkpoint} is {of}not of train_{script}.py: name the folder of one of its runs")
    return FinishedRun(script, checkpoint, saved_settings(kind, {**old_rules, **state["config"]}))


def _script_of_state(state: Mapping[str, Any]) -> str | None:
    """Whose a checkpoint is, also of before checkpoints named their script."""
    if "script" in state:
        return state["script"]
    return next((script for script, flag in FLAG_OF_SCRIPT.items() if flag in state.get("config", {})), None)


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
