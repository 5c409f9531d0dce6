"""Augmentation of whole batches of uint8 images, on the device.

What an example looks like in an epoch depends on (seed, epoch, example id) alone, not on its batch or process.
Shapes: N images of the data set, B of a batch, C channels, H x W pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.images.on_host import RowsOnHost, copied_ahead, share_of
from data.images.pixels import CHUNK, along_rows
from data.seeding import Stream, seeded_rng

# What images take on the device beside an augmenter, in multiples of their bytes: themselves, and its copies with
# a border, of which one is mirrored. With a border of an eighth of the side it is 4.1.
TIMES_ON_DEVICE = 4


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training image: flip, crop, brightness, contrast, cutout, in this order. Default: nothing.

    Raises `DataError` for a value out of range.
    """

    crop_padding: int = 0  # pixels of border within which a crop of the original size is drawn
    padding_mode: str = "reflect"  # the border: "reflect" without the edge itself, or "zero", the mean colour
    flip: str = "none"  # left-right: "none", "random", or "alternating": half in even epochs, the rest in odd ones
    cutout: int = 0  # side of a square in the mean colour, its centre anywhere in the image, clipped at the edge
    brightness: float = 0.0  # b: pixel values are multiplied by 1 + U(-b, b), and not clipped
    contrast: float = 0.0  # c: distances from the image's mean are multiplied by 1 + U(-c, c), and not clipped

    def __post_init__(self) -> None:
        for flag, name, known in (
            ("--flip", self.flip, ("none", "random", "alternating")),
            ("--padding_mode", self.padding_mode, ("reflect", "zero")),
        ):
            if name not in known:
                raise DataError(f"unknown {flag} {name}: choose one of {', '.join(known)}")
        for flag, pixels in (("--crop_padding", self.crop_padding), ("--cutout", self.cutout)):
            if pixels < 0:
                raise DataError(f"{flag} {pixels} is negative: give a number of pixels, 0 for none")
        for flag, strength in (("--brightness", self.brightness), ("--contrast", self.contrast)):
            if not 0 <= strength <= 1:
                raise DataError(f"{flag} {strength} is not between 0 and 1")


class _Windows:
    """The bytes of images with a border, once, and a second time mirrored where that is wanted: (B, H, W, C).

    Every crop of them is one strided window.
    """

    def __init__(self, images: Tensor, padding: int, n_sides: int):
        """`images` (N, C, H, W) uint8; two sides are the images and their mirrors."""
        self.n_images, n_channels, height, width = images.shape
        rows, columns = (_reflected(length, padding, images.device) for length in (height, width))
        padded = images[:, :, rows[:, None], columns] if padding else images
        padded = padded.permute(0, 2, 3, 1)  # (N, H + 2 padding, W + 2 padding, C)
        stored = torch.empty((n_sides, *padded.shape), dtype=torch.uint8, device=images.device)
        stored[0] = padded
        if n_sides == 2:
            stored[1] = padded.flip(2)
        # Window s is the image whose first byte is byte s of the store; windows overlap and take no memory.
        self._strides = stored.stride()  # of the sides, images, rows, columns and channels, in bytes
        row_stride, row = self._strides[2], width * n_channels
        n_windows = stored.numel() - (height - 1) * row_stride - row + 1
        self._windows = stored.as_strided((n_windows, height, row), (1, row_stride, 1))

    def starts(self, images, mirrored, top, left):
        """Of crops: the number of each one's image, whether its mirror, and the corner. Arrays or tensors alike."""
        side_stride, image_stride, row_stride, column_stride, _ = self._strides
        return mirrored * side_stride + images * image_stride + top * row_stride + left * column_stride

    def __getitem__(self, starts: Tensor) -> Tensor:
        """The crops (B, H, W * C) that begin at the bytes `starts` (B,)."""
        return self._windows[starts]


class Augmenter:
    """Draws an epoch's augmentation of all N images at once, then gives augmented, normalised batches.

    Alternating flip: a random half of the images is flipped in epoch 0 and all turn over in each later epoch,
    so that two epochs show both sides of each (cifar10-airbench, arXiv 2404.00498, section 3.6).
    Cutout: DeVries & Taylor, arXiv 1708.04552. The mean that contrast keeps is the one over all pixels and
    channels of the whole image.

    `batch` reads each crop as one strided window of the padded bytes. So the bytes lie as (N, H, W, C) on the
    device, once, and a second time mirrored where flips are asked for. Of images that stay on the host
    (data/images/on_host.py), those of a batch do.
    """

    def __init__(self, images: Tensor, augmentation: Augmentation, mean: Tensor, std: Tensor, seed: int):
        """`images` (N, C, H, W) uint8; `mean` and `std` (C,) in pixel units, 0 to 255. Epoch 0 is drawn.

        Raises `DataError` where the crop's border or the cutout square is too large for the images.
        """
        self.n_images, self.n_channels, self.height, self.width = images.shape
        padding, side = augmentation.crop_padding, min(self.height, self.width)
        size = f"images of {self.height}x{self.width} pixels"
        if padding >= side:
            raise DataError(f"--crop_padding {padding} is too large for {size}: give at most {side - 1}")
        if augmentation.cutout > side:
            raise DataError(f"--cutout {augmentation.cutout} is too large for {size}: give at most {side}")
        self.augmentation, self.seed, self.device, self._images = augmentation, seed, images.device, images
        self._n_sides = 1 if augmentation.flip == "none" else 2
        self._mean, self._std = along_rows(mean, std, self.width, self.device)

        # Of all images, or None where they stay on the host.
        self._windows = None if isinstance(images, RowsOnHost) else _Windows(images, padding, self._n_sides)
        self._row_in_image = _in_image(self.height, padding, 1, self.device)  # (2 padding + 1, H)
        self._column_in_image = _in_image(self.width, padding, self.n_channels, self.device)  # (…, W * C)
        self._square = torch.arange(augmentation.cutout, device=self.device) - augmentation.cutout // 2
        if augmentation.contrast:
            sums = [chunk.flatten(1).sum(1, dtype=torch.int64) for chunk in images.split(CHUNK)]
            self._image_means = torch.cat(sums).cpu().numpy() / images[0].numel()
        self.draw(0)

    def draw(self, epoch: int) -> None:
        """Make the random choices of all N images for `epoch`: on the CPU, so that each device sees the same."""
        a = self.augmentation
        # Each choice has its own row, drawn or not: to turn one on changes none of the others.
        flip, top, left, cut_y, cut_x, brightness, contrast = self._uniform(epoch)
        flipped = flip < 0.5
        if a.flip == "alternating":
            flipped = (self._uniform(0)[0] < 0.5) ^ (epoch % 2 == 1)
        n_shifts = 2 * a.crop_padding + 1
        top, left = (top * n_shifts).astype(np.int64), (left * n_shifts).astype(np.int64)
        if a.flip == "none":
            flipped = np.zeros_like(flipped)
        if self._windows is not None:
            self._starts = self._to_device(self._windows.starts(np.arange(self.n_images), flipped, top, left))
        else:
            self._flipped = self._to_device(flipped)
        if self._windows is None or (a.padding_mode == "zero" and a.crop_padding):
            self._top, self._left = self._to_device(top), self._to_device(left)
        if a.cutout:
            self._cut_row = self._to_device((cut_y * self.height).astype(np.int64))[:, None]
            self._cut_column = self._to_device((cut_x * self.width).astype(np.int64))[:, None]
        if a.brightness or a.contrast:  # both in one: gain * pixel + offset
            brightness = 1 + a.brightness * (2 * brightness - 1)
            contrast = 1 + a.contrast * (2 * contrast - 1)
            offset = brightness * self._image_means * (1 - contrast) if a.contrast else np.zeros(self.n_images)
            self._gain = self._to_device((brightness * contrast).astype(np.float32))[:, None, None]
            self._offset = self._to_device(offset.astype(np.float32))[:, None, None]

    def batch(self, ids: Tensor) -> Tensor:
        """`ids` (B,) int64 on the device -> the augmented images, (B, C, H, W) float32 normalised, channels_last.

        Never waits for the device.
        """
        a = self.augmentation
        x = self._crops(ids).float()
        if a.brightness or a.contrast:
            x.mul_(self._gain[ids]).add_(self._offset[ids])
        x.sub_(self._mean).div_(self._std)
        if a.padding_mode == "zero" and a.crop_padding:
            x.mul_(self._row_in_image[self._top[ids]][:, :, None])
            x.mul_(self._column_in_image[self._left[ids]][:, None, :])
        if a.cutout:
            # Clamped, the part of a square beyond the edge falls on the edge, which it covers anyway.
            rows = (self._cut_row[ids] + self._square).clamp_(0, self.height - 1)  # (B, side)
            columns = (self._cut_column[ids] + self._square).clamp_(0, self.width - 1)
            first = torch.arange(len(ids), device=self.device)[:, None, None] * (self.height * self.width)
            pixels = first + rows[:, :, None] * self.width + columns[:, None, :]  # (B, side, side)
            x.view(-1, self.n_channels).index_fill_(0, pixels.flatten(), 0.0)
        return x.view(len(ids), self.height, self.width, self.n_channels).permute(0, 3, 1, 2)

    def ahead(self, updates: Sequence[Tensor], own_parts: Iterable[int], n_parts: int) -> Sequence[Tensor]:
        """The `updates`, image numbers (B,) each.

        Of images that stay on the host, those of this process's parts are copied ahead of their use.
        """
        return copied_ahead(updates, share_of(own_parts, n_parts), self._images)

    def preview(self, image_id: int, n_epochs: int) -> Tensor:
        """What one image is in each of the first epochs: (n, C, H, W) from 0 to 1.

        The epoch drawn last is then another: call `draw` again.
        """
        views = []
        for epoch in range(n_epochs):
            self.draw(epoch)
            views.append(self.batch(torch.tensor([image_id], device=self.device)))
        mean, std = (row[: self.n_channels, None, None] for row in (self._mean, self._std))
        return ((torch.cat(views) * std + mean) / 255).clamp(0, 1)

    def _crops(self, ids: Tensor) -> Tensor:
        """Of images `ids` (B,): (B, H, W * C) uint8."""
        if self._windows is not None:
            return self._windows[self._starts[ids]]
        windows = _Windows(self._images[ids], self.augmentation.crop_padding, self._n_sides)
        images = torch.arange(len(ids), device=self.device)
        return windows[windows.starts(images, self._flipped[ids], self._top[ids], self._left[ids])]

    def _uniform(self, epoch: int) -> np.ndarray:
        """(7, N) in [0, 1): a column an example, the same however many examples follow it.

        A new choice draws from a key of its own, `seeded_rng(Stream.AUGMENTATION, seed, epoch, 1)`: more rows here
        would change all others, and with them every seed's run.
        """
        return seeded_rng(Stream.AUGMENTATION, self.seed, epoch).random((self.n_images, 7)).T

    def _to_device(self, choices: np.ndarray) -> Tensor:
        return torch.from_numpy(choices).to(self.device)


def _reflected(size: int, padding: int, device: torch.device) -> Tensor:
    """The row (or column) of the image that each of its size + 2 padding padded ones shows."""
    last = size - 1
    return last - (last - torch.arange(-padding, size + padding, device=device).abs()).abs()


def _in_image(size: int, padding: int, channels: int, device: torch.device) -> Tensor:
    """(2 padding + 1, size * channels): for each shift of a crop, 1 where it shows the image, 0 its border."""
    position = torch.arange(2 * padding + 1)[:, None] + torch.arange(size)
    inside = (position >= padding) & (position < padding + size)
    return inside.float().repeat_interleave(channels, dim=1).to(device)
