"""A folder with an exported model: `config.json` describes it, `model.safetensors` holds its weights."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from data.errors import DataError

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def local_folder(name: str | Path) -> Path:
    """The folder `name`; of a name like user/model that is no folder here, what the hub has of it, downloaded."""
    folder = Path(name)
    if folder.is_dir() or len(folder.parts) != 2:
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(name)))


def read_description(folder: Path, script: str) -> dict[str, Any]:
    """What config.json says of a model that train_<script>.py trained. Raises DataError where it is none."""
    path = folder / CONFIG
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): name a folder that `tools.export` wrote") from error
    if description.get("script") != script:
        raise DataError(f"{folder} is of train_{description.get('script')}.py, not of train_{script}.py")
    return description


def load_model_weights(model: nn.Module, folder: Path) -> None:
    """Load the folder's weights into a model, all of them."""
    weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    model.load_state_dict(weights)
