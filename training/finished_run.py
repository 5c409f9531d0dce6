"""Opening a finished run: its best checkpoint, the settings that it was trained with, what it keeps of its data."""

import json
from collections.abc import Callable, Mapping
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

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the checkpoint keeps of images that it was trained on: "class_names", "image_size", ..

        Raises UsageError where it keeps nothing.
        """
        path = self.checkpoint / "data.json"
        if not path.exists():
            raise _of_another_script(self.checkpoint, self.script)
        return json.loads(path.read_text(encoding="utf-8"))

    def load(self, build_model: Callable[[C, int], M], device: torch.device) -> M:
        """The trained model, or the average of its weights where there is one, on `device`, for evaluation.

        `build_model(config, n_classes)` is the script's own.
        """
        model = build_model(self.config, len(self.data["class_names"]))
        load_weights(model, self.checkpoint)
        model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
        return model.eval()


def open_run(
    run: str | Path, script: str, kind: type[C], old_rules: Mapping[str, Any] = MappingProxyType({})
) -> FinishedRun[C]:
    """The run of `script` ("cifar", ..) that a run folder holds, by its best checkpoint, or of one checkpoint.

    `kind` is the script's Config; `old_rules` are what held in runs of before a field was there, where that is not
    its default. Raises UsageError where there is no sound checkpoint, and where it is of another script.
    """
    checkpoint = checkpoint_of_run(run)
    state = read_state(checkpoint)
    theirs = state.get("script")
    if script != theirs and (theirs is not None or FLAG_OF_SCRIPT[script] not in state["config"]):
        raise _of_another_script(checkpoint, script)
    return FinishedRun(script, checkpoint, saved_settings(kind, {**old_rules, **state["config"]}))


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _of_another_script(checkpoint: Path, script: str) -> UsageError:
    return UsageError(f"{checkpoint} is not of train_{script}.py: name the folder of one of its runs")
