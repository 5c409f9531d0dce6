"""A classifier from a folder that `tools.export` wrote: `from_pretrained(FOLDER)(["picture.png"])`.

Stands in the project and, copied, in the folder itself, so that the folder can be used alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.images.decoding import decode_image
from data.images.pixels import normalise
from data.images.rows import read_bytes
from models.resnet import ResNet9
from models.speednet import SpeedNet
from models.test_time_augmentation import logits_over_views
from models.ultimus import Ultimus
from tools.pretrained.folder import load_model_weights, local_folder, read_description


class PretrainedClassifier:
    """A trained net with its class names: image files -> the probability of each class.

    `description` is config.json: the net's arguments, its classes, the size and statistics of its images.
    """

    def __init__(self, model: nn.Module, description: dict[str, Any], device: torch.device):
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval()
        self.description, self.device = description, device
        self.class_names: list[str] = description["class_names"]
        self.mean, self.std = (torch.tensor(description[name]) for name in ("mean", "std"))

    def __call__(self, paths: Sequence[str | Path]) -> list[dict[str, float]]:
        """Of each file the probabilities of the classes, by name, likeliest first.

        A picture of another size is resized and cropped as in training. Raises DataError, naming the file, for
        one that cannot be read.
        """
        side = self.description["image_size"]
        images = [torch.tensor(decode_image(read_bytes(Path(path)), str(path), side, 3)) for path in paths]
        answers = []
        for shares in self.outputs(torch.stack(images)).softmax(1):
            ranked = shares.sort(descending=True)
            names = [self.class_names[k] for k in ranked.indices.tolist()]
            answers.append(dict(zip(names, ranked.values.tolist(), strict=True)))
        return answers

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 -> logits (B, K), over the views that the run was tested with."""
        inputs = normalise(images.to(self.device), self.mean, self.std)
        return logits_over_views(self.model, inputs, self.description["views"]).float().cpu()


def build_model(architecture: dict[str, Any]) -> nn.Module:
    """The untrained net: "kind" and the arguments of its class."""
    kinds = {"resnet": ResNet9, "speednet": SpeedNet, "ultimus": Ultimus}
    arguments = {name: value for name, value in architecture.items() if name != "kind"}
    return kinds[architecture["kind"]](**arguments)


def from_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> PretrainedClassifier:
    """The model of a folder, or of a name on the hub. Raises DataError where there is none."""
    folder = local_folder(folder)
    description = read_description(folder, "cifar")
    model = build_model(description["architecture"])
    load_model_weights(model, folder)
    return PretrainedClassifier(model, description, torch.device(device))
