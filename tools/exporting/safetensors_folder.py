"""`--to safetensors`: the averaged weights with config.json and tokenizers, as tools/pretrained/ opens them."""

import importlib
import json
from pathlib import Path

from safetensors.torch import save

from tools.exporting.comparison import Difference, largest_difference
from tools.exporting.trained_model import Pretrained, TrainedModel
from tools.pretrained.folder import CONFIG, WEIGHTS

# Of logits and pictures. The weights are the same, but another layout in memory lets torch choose other kernels.
LIMIT = 1e-4


def write(trained: TrainedModel, folder: Path) -> None:
    """Fill an empty folder."""
    weights = {name: tensor.contiguous() for name, tensor in trained.model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(weights, metadata={"format": "pt"}))  # save_file shuts others out
    (folder / CONFIG).write_text(json.dumps(trained.description, indent=1) + "\n", encoding="utf-8")
    for name, text in trained.texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def differences(trained: TrainedModel, folder: Path) -> list[Difference]:
    """How far the model that the folder holds is from the run's."""
    opener = importlib.import_module(f"tools.pretrained.{trained.script}")
    opened: Pretrained = opener.from_pretrained(folder)
    expected = trained.pretrained.outputs(**trained.inputs)
    return [largest_difference("the outputs", expected, opened.outputs(**trained.inputs), LIMIT)]
