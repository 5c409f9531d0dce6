"""Segment pictures with a finished run: `python -m tools.segment RUN FILES ..` writes masks and overlays.

The masks can be trained on: as masks/ beside images/ of the pictures, `train_unet.py --data_dir` takes them.

All that it needs is in the run's folder: the checkpoint brings weights, config, class names and statistics along.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from PIL import Image
from torch.nn import functional as F
from tyro.conf import Positional

from data.errors import DataError
from data.images.decoding import decode_picture
from data.images.mask_classes import write_class_table
from data.images.masked_folders import mask_picture
from data.images.pixels import normalise
from figures.segmentation import mask_colors, overlay_masks
from models.segmentation_scores import predict_masks
from models.test_time_augmentation import PixelViews, pixel_logits_over_views
from train_unet import Config, build_model
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import default_device, open_run

TRIMAP_LEVELS = (0, 255, 128)  # in masks of background, pet and border


class Segmenter:
    """A trained U-Net: `Segmenter(run)(paths)` yields a picture and its mask for each file.

    `run` is one checkpoint, or a run folder, of which the best is taken, or the newest where none was validated.
    Raises UsageError if there is none.
    """

    def __init__(self, run: str | Path, device: torch.device | None = None):
        opened = open_run(run, "unet", Config)
        self.config = opened.config
        self.device = device or default_device()
        self.class_names, self.image_size = opened.data["class_names"], opened.data["image_size"]
        values = opened.data.get("mask_values") or TRIMAP_LEVELS[: len(self.class_names)]
        self.mask_values = [tuple(value) if isinstance(value, list) else value for value in values]
        self.mean, self.std = (torch.tensor(opened.data[name], device=self.device) for name in ("mean", "std"))
        self.model = opened.load(build_model(self.config, len(self.class_names)), self.device)

    @torch.no_grad()
    def masks(self, images: torch.Tensor, size: tuple[int, int], views: PixelViews = "one") -> torch.Tensor:
        """Images (B, 3, S, S) uint8 at the size of the training -> masks (B, H, W) uint8 at `size` (H, W)."""
        logits = self.logits(images, views)
        if logits.shape[2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", antialias=True)
        return predict_masks(logits).cpu()

    @torch.no_grad()
    def logits(self, images: torch.Tensor, views: PixelViews = "one") -> torch.Tensor:
        """Images (B, 3, S, S) uint8 -> logits (B, 1, S, S) of the foreground, or (B, K, S, S), in fp32."""
        inputs = normalise(images.to(self.device), self.mean, self.std)
        return pixel_logits_over_views(self.model, inputs, views).float()

    def __call__(
        self, paths: Sequence[str | Path], views: PixelViews = "one"
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each file, in order, the picture (3, H, W) uint8 and its mask (H, W) uint8, at its own size.

        The net sees the whole picture at the size of its training, as it did then. Raises DataError, naming the
        file, for one that cannot be read.
        """
        for path in paths:
            picture = decode_picture(Path(path))
            small = picture.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
            pixels, inputs = (torch.tensor(np.asarray(p)).permute(2, 0, 1) for p in (picture, small))
            yield pixels, self.masks(inputs[None], (picture.height, picture.width), views)[0]


def shares_in_words(mask: torch.Tensor, class_names: Sequence[str]) -> str:
    """The share of each class but the first in a mask (H, W); of more than two others those that occur."""
    shares = {name: float((mask == k).float().mean()) for k, name in enumerate(class_names) if k > 0}
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share or len(shares) <= 2)


def main(
    run: Positional[PathFlag],
    files: Positional[tuple[PathFlag, ...]],
    output_dir: Annotated[PathFlag, tyro.conf.arg(help="where the masks and overlays go")] = "segmented",
    views: Annotated[PixelViews | None, tyro.conf.arg(help="views that are averaged; without: the run's")] = None,
) -> None:
    """Write NAME_mask.png and NAME_overlay.png for each picture, and classes.csv with the values of the masks.

    Masks hold the values of those that the run was trained on; of Pet 0 background, 255 pet, 128 border.

    Args:
        run: run folder or one checkpoint
        files: image files
    """
    try:
        names = [Path(file).stem for file in files]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two of the files are called {twice}, and so would their masks: segment them apart")
        segmenter = Segmenter(run)
        views = views or segmenter.config.views
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_class_table(folder / "classes.csv", segmenter.class_names, segmenter.mask_values)
        colors = mask_colors(len(segmenter.class_names))
        for file, name, (picture, mask) in zip(files, names, segmenter(files, views), strict=True):
            overlay = overlay_masks(picture[None], mask[None])[0].permute(1, 2, 0).numpy()
            mask_picture(mask.numpy(), segmenter.mask_values, colors).save(folder / f"{name}_mask.png")
            Image.fromarray(overlay).save(folder / f"{name}_overlay.png")
            print(f"{file}\t{folder / name}_mask.png\t{shares_in_words(mask, segmenter.class_names)}")
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
