"""A segmentation model from a folder that `tools.export` wrote: `from_pretrained(FOLDER)(["picture.png"])`.

Stands in the project and, copied, in the folder itself, so that the folder can be used alone.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from data.images.decoding import decode_picture
from data.images.pixels import normalise
from models.segmentation_scores import predict_masks
from models.test_time_augmentation import pixel_logits_over_views
from models.unet import UNet
from tools.pretrained.folder import load_model_weights, local_folder, read_description


class PretrainedSegmenter:
    """A trained U-Net with its class names: image files -> masks of class numbers.

    `description` is config.json: the net's arguments, its classes, the size and statistics of its pictures.
    """

    def __init__(self, model: UNet, description: dict[str, Any], device: torch.device):
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval()
        self.description, self.device = description, device
        self.class_names: list[str] = description["class_names"]
        self.mean, self.std = (torch.tensor(description[name]) for name in ("mean", "std"))

    def __call__(self, paths: Sequence[str | Path]) -> Iterator[Tensor]:
        """Of each file the mask (H, W) uint8 of class numbers, at the picture's own size.

        The net sees the whole picture at the size of its training, over the views that the run was tested with.
        Raises DataError, naming the file, for one that cannot be read.
        """
        from PIL import Image

        side = self.description["image_size"]
        for path in paths:
            picture = decode_picture(Path(path))
            small = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
            inputs = normalise(torch.tensor(small).permute(2, 0, 1)[None].to(self.device), self.mean, self.std)
            with torch.no_grad():
                logits = pixel_logits_over_views(self.model, inputs, self.description["views"]).float()
            size = (picture.height, picture.width)
            if size != (side, side):
                logits = F.interpolate(logits, size, mode="bilinear", antialias=True)
            yield predict_masks(logits)[0].cpu()

    @torch.no_grad()
    def outputs(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) uint8 of any size -> logits (B, 1 or K, H, W), of one view."""
        return self.model(normalise(images.to(self.device), self.mean, self.std)).float().cpu()


def build_model(architecture: dict[str, Any]) -> UNet:
    """The untrained net of these arguments."""
    return UNet(**architecture)


def from_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> PretrainedSegmenter:
    """The model of a folder, or of a name on the hub. Raises DataError where there is none."""
    folder = local_folder(folder)
    description = read_description(folder, "unet")
    model = build_model(description["architecture"])
    load_model_weights(model, folder)
    return PretrainedSegmenter(model, description, torch.device(device))
