"""Augmentation of whole batches of uint8 images together with their masks, on the device.

What an example looks like in an epoch depends on (seed, epoch, example id) alone, not on its batch or process.
Shapes: N images of the data set, B of a batch, square ones of S x S pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from data.errors import DataError
from data.images.on_host import copied_ahead, share_of
from data.images.pixels import CHUNK
from data.seeding import Stream, seeded_rng

TIE_BREAKER = 1e-4  # of the weights of pixels, which sum to one
LUMA = (0.299, 0.587, 0.114)  # how much of grey is red, green and blue: ITU-R BT.601
YIQ = np.array([LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)])  # from red, green, blue: luma and hue
# A colour's I and Q turned by a quarter, as red, green, blue without luma; nothing of a grey.
QUARTER_TURN = np.linalg.inv(YIQ) @ np.array([[0, 0, 0], [0, 0, -1], [0, 1, 0]]) @ YIQ


@dataclass(frozen=True)
class JointAugmentation:
    """What is done to a training image and, but for its colours, to its mask, in this order. Default: nothing.

    All of the geometry is one resampling: the augmented image shows a window of the original, which beyond its
    edges is continued by its mirror image. Raises `DataError` for a value out of range.
    """

    flip: bool = False  # left-right, of a random half of the images
    scale: float = 0.0  # s: the window's sides are 1/(1 + s) to 1 + s of the image's, log-uniform: zoom in or out
    aspect: float = 0.0  # a: the window's width over its height, likewise between 1/(1 + a) and 1 + a; area kept
    shift: float = 0.0  # t: the window's centre is moved by U(-t, t) of the image's side, in x and in y
    rotation: float = 0.0  # degrees: the window is turned about its centre by U(-rotation, rotation)
    brightness: float = 0.0  # b: pixel values are multiplied by 1 + U(-b, b), and not clipped
    contrast: float = 0.0  # c: distances from the image's mean are multiplied by 1 + U(-c, c), and not clipped
    saturation: float = 0.0  # s: distances from the pixel's luma are multiplied by 1 + U(-s, s), and not clipped
    hue: float = 0.0  # degrees: they are turned about the axis of greys by U(-hue, hue), luma kept, and not clipped
    gamma: float = 0.0  # g: before that, values from 0 to 1 are raised to 1/(1 + g) to 1 + g, log-uniform
    low_resolution: float = 0.0  # share of the images that are shown as from U(0.5, 1) of their rows and columns
    background_mix: float = 0.0  # share of the images that show another one's background where both have background
    cutmix: float = 0.0  # share of the images with a rectangle, of U(0, 1) of the area, that shows another image

    def __post_init__(self) -> None:
        for name, largest in (
            ("scale", 1),
            ("aspect", 1),
            ("shift", 0.5),
            ("rotation", 180),
            ("brightness", 1),
            ("contrast", 1),
            ("saturation", 1),
            ("hue", 180),
            ("gamma", 1),
            ("low_resolution", 1),
            ("background_mix", 1),
            ("cutmix", 1),
        ):
            value = getattr(self, name)
            if not 0 <= value <= largest:
                raise DataError(f"--{name} {value} is not between 0 and {largest}: give such a number, 0 for none")


class JointAugmenter:
    """Draws an epoch's augmentation of all N images at once, then gives augmented, normalised batches with masks.

    Image (bilinear) and mask (nearest neighbour, or the value of most weight where only the size changes) are read
    at the same places, so they keep showing the same and a mask gets no value that it does not have. A pixel is
    read from the four nearest: zoomed far out, fine detail may alias. The mean that contrast keeps is the one over
    all pixels and channels of the image as it is stored.
    """

    def __init__(
        self, images: Tensor, masks: Tensor, augmentation: JointAugmentation, mean: Tensor, std: Tensor, seed: int
    ):
        """`images` (N, 3, S, S) and `masks` (N, S, S) uint8; `mean` and `std` (3,) in pixel units, 0 to 255.

        They lie on the device, or stay on the host (data/images/on_host.py). Epoch 0 is drawn.
        """
        self.images, self.masks, self.augmentation, self.seed = images, masks, augmentation, seed
        self.n_images, self.device = len(images), images.device
        self._mean, self._std = (t.to(self.device, torch.float32)[:, None, None] for t in (mean, std))
        sums = [chunk.flatten(1).sum(1, dtype=torch.int64) for chunk in images.split(CHUNK)]
        self._image_means = torch.cat(sums).cpu().numpy() / images[0].numel()
        self.draw(0)

    def draw(self, epoch: int) -> None:
        """Make the random choices of all N images for `epoch`: on the CPU, so that each device sees the same."""
        a = self.augmentation
        # Each choice has its own row, drawn or not: to turn one on changes none of the others. A new one draws from
        # a key of its own, seeded_rng(Stream.AUGMENTATION, seed, epoch, 1): more rows here would change all others.
        choices = seeded_rng(Stream.AUGMENTATION, self.seed, epoch).random((self.n_images, 17)).T
        flip, turns, mixed, other = choices[[0, 9, 10, 11]]
        self._draw_rectangles(*choices[12:])
        exponent, reduced, resolution = (
            seeded_rng(Stream.AUGMENTATION, self.seed, epoch, 1).random((self.n_images, 3)).T
        )
        self._exponent = self._to_device((1 + a.gamma) ** (2 * exponent - 1))
        self._resolution = self._to_device(np.where(reduced < a.low_resolution, 0.5 + resolution / 2, 1.0))
        self._mixes_background = torch.from_numpy(mixed < a.background_mix).to(self.device)
        self._other_backgrounds = self._other_images(other)
        self._flipped = torch.from_numpy(flip < 0.5).to(self.device)
        scale, aspect, shift_x, shift_y, turn, brightness, contrast, saturation = 2 * choices[1:9] - 1

        side, root = (1 + a.scale) ** scale, (1 + a.aspect) ** (aspect / 2)
        width, height = side * root, side / root
        angle = np.radians(a.rotation * turn)
        cos, sin = np.cos(angle), np.sin(angle)
        # Pixel (x, y) of the result shows the place window @ (x, y, 1) of the image, in -1 to 1 from edge to edge.
        self._window = self._to_device(
            [
                [width * cos, -height * sin, 2 * a.shift * shift_x],
                [width * sin, height * cos, 2 * a.shift * shift_y],
            ]
        )  # (N, 2, 3)

        # All in one: gain * pixel + turned_gain * pixel a quarter turned + grey_gain * luma + offset. Luma commutes
        # with brightness and contrast.
        brightness, contrast, saturation = (
            1 + strength * choice
            for strength, choice in (
                (a.brightness, brightness),
                (a.contrast, contrast),
                (a.saturation, saturation),
            )
        )
        hue = np.radians(a.hue * (2 * turns - 1))
        self._gain = self._to_device(brightness * contrast * saturation * np.cos(hue))
        self._turned_gain = self._to_device(brightness * contrast * saturation * np.sin(hue))
        self._grey_gain = self._to_device(brightness * contrast * (1 - saturation * np.cos(hue)))
        self._offset = self._to_device(brightness * (1 - contrast) * self._image_means)

    def batch(self, ids: Tensor, size: int = 0) -> tuple[Tensor, Tensor]:
        """`ids` (B,) int64 on the device -> augmented images and masks. Never waits for the device.

        The images are (B, 3, S, S) float32, normalised, in channels_last memory format; without augmentation they
        are bit for bit what `normalise` of data/images/pixels.py gives. The masks are (B, S, S) uint8. `size`
        other than 0 is the side in pixels that both are drawn at instead of S: a coarser look at the same
        augmentation.
        """
        size = size or self.images.shape[-1]
        x, masks = self._augmented(ids, size)
        if self.augmentation.background_mix:
            others, other_masks = self._augmented(self._other_backgrounds[ids], size)
            shows_other = self._mixes_background[ids][:, None, None] & (masks == 0) & (other_masks == 0)
            x = torch.where(shows_other[:, None], others, x)
        if self.augmentation.cutmix:
            others, other_masks = self._augmented(self._others[ids], size)
            centres = (torch.arange(size, device=self.device) + 0.5) / size
            low, high = self._rectangle[ids][..., None].unbind(1)  # each (B, 2, 1): of x and y, in 0 to 1
            in_x, in_y = ((low <= centres) & (centres < high)).unbind(1)  # each (B, size)
            inside = in_y[:, :, None] & in_x[:, None]
            x, masks = torch.where(inside[:, None], others, x), torch.where(inside, other_masks, masks)
        x = x.sub_(self._mean).div_(self._std)
        return x.contiguous(memory_format=torch.channels_last), masks

    def ahead(self, updates: Sequence[Tensor], own_parts: Iterable[int], n_parts: int) -> Sequence[Tensor]:
        """The `updates` of the epoch that was drawn last, image numbers (B,) each.

        Of images and masks that stay on the host, those that this process's parts show are copied ahead of their
        use, with the other images that are mixed into them.
        """
        a, own = self.augmentation, share_of(own_parts, n_parts)
        mixed_in = ((a.background_mix, self._other_backgrounds), (a.cutmix, self._others))
        others = [of_image.cpu() for share, of_image in mixed_in if share]

        def shown(ids: Tensor) -> Tensor:
            return torch.cat([own(ids), *(of_image[own(ids)] for of_image in others)])

        return copied_ahead(updates, shown, self.images, self.masks)

    def preview(self, image_id: int, n_epochs: int) -> tuple[Tensor, Tensor]:
        """What one image is in each of the first epochs: images (n, 3, S, S) from 0 to 1 and masks (n, S, S).

        The epoch drawn last is then another: call `draw` again.
        """
        pairs = []
        for epoch in range(n_epochs):
            self.draw(epoch)
            pairs.append(self.batch(torch.tensor([image_id], device=self.device)))
        images, masks = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return ((images * self._std + self._mean) / 255).clamp(0, 1), masks

    def _augmented(self, ids: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Images (B, 3, size, size) float32 in pixel units and masks, as `batch` but each of one image alone."""
        a = self.augmentation
        images, masks = self.images[ids], self.masks[ids]
        if a.flip:
            flipped = self._flipped[ids][:, None, None]
            images = torch.where(flipped[:, None], images.flip(-1), images)
            masks = torch.where(flipped, masks.flip(-1), masks)
        x = images.float()
        if a.scale or a.aspect or a.shift or a.rotation:
            places = self._places(ids, size)
            x = _sample(x, places, "bilinear")
            masks = _sample(masks[:, None].float(), places, "nearest")[:, 0].to(torch.uint8)
        elif size != x.shape[-1]:
            x, masks = _sample(x, self._places(ids, size), "bilinear"), _resized_masks(masks, size)
        if a.low_resolution:
            x = _at_resolution(x, self._resolution[ids])
        if a.gamma:
            x = (x / 255).clamp_(0, 1).pow_(self._exponent[ids][:, None, None, None]).mul_(255)
        if a.brightness or a.contrast or a.saturation or a.hue:
            gain, turned_gain, grey_gain, offset = (
                t[ids][:, None, None, None] for t in (self._gain, self._turned_gain, self._grey_gain, self._offset)
            )
            red, green, blue = x.split(1, dim=1)  # (B, 1, S, S)
            if a.saturation or a.hue:
                offset = grey_gain * (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue) + offset
            if a.hue:
                turned = [r * red + g * green + b * blue for r, g, b in QUARTER_TURN.tolist()]
                offset = turned_gain * torch.cat(turned, 1) + offset
            x = x.mul_(gain).add_(offset)
        return x, masks

    def _draw_rectangles(self, mixed, other, area, x, y) -> None:
        """From choices (N,) in 0 to 1: the other image of each, and the rectangle in which it is shown.

        As CutMix has it (Yun et al. 2019, arXiv 1905.04899): of the image's own shape, its centre anywhere, what
        lies outside of the image cut off. Nothing is mixed where there is no other image.
        """
        half_side = np.where(mixed < self.augmentation.cutmix, np.sqrt(area) / 2, 0.0)
        self._others = self._other_images(other)
        self._rectangle = self._to_device([[x - half_side, y - half_side], [x + half_side, y + half_side]])

    def _other_images(self, choices: np.ndarray) -> Tensor:
        """From choices (N,) in 0 to 1: another image for each, (N,) int64; itself where it is alone."""
        n = self.n_images
        return torch.from_numpy((np.arange(n) + 1 + (choices * (n - 1)).astype(np.int64)) % n).to(self.device)

    def _places(self, ids: Tensor, size: int) -> Tensor:
        """(B, size, size, 2): the x and y in the image that each pixel shows, as `grid_sample` counts them.

        As `affine_grid`, but in plain products and sums: a matrix product might be rounded to TF32, and may
        round otherwise in another batch.
        """
        centres = (2 * torch.arange(size, device=self.device) + 1) / size - 1  # of the pixels; the edges are -1, 1
        to_x, to_y, constant = self._window[ids][..., None, None].unbind(2)  # each (B, 2, 1, 1)
        return (to_x * centres + (to_y * centres[:, None] + constant)).permute(0, 2, 3, 1)

    def _to_device(self, choices: np.ndarray | list) -> Tensor:
        """(..., N) -> (N, ...) float32."""
        choices = np.moveaxis(np.asarray(choices, np.float32), -1, 0)
        return torch.from_numpy(np.ascontiguousarray(choices)).to(self.device)


def _resized_masks(masks: Tensor, size: int) -> Tensor:
    """(B, S, S) uint8 -> (B, size, size): of the four values that a pixel is read from, the one of most weight.

    The nearest alone would not do. At half the size each pixel lies between four, all of them equally near; to take
    the same one everywhere moves the edges of a mask half a pixel away from the picture's. So a tie of weights
    goes to the pixel before the place and to the one after it in turn, as on a chessboard.
    """
    side, device = masks.shape[-1], masks.device
    positions = torch.arange(size, device=device)
    places = (positions + 0.5) * (side / size) - 0.5
    before = places.floor()
    after_share = places - before
    ends = [(before.long().clamp(min=0), 1 - after_share), (before.long().add(1).clamp(max=side - 1), after_share)]
    corners = [(row, column) for row in ends for column in ends]
    values = torch.stack([masks[:, rows[:, None], columns] for (rows, _), (columns, _) in corners])
    weights = torch.stack([of_row[:, None] * of_column for (_, of_row), (_, of_column) in corners])
    is_dark = (positions[:, None] + positions) % 2 == 0
    weights[0] += TIE_BREAKER * is_dark
    weights[3] += TIE_BREAKER * ~is_dark
    weight_of_value = torch.where(values[:, None] == values, weights[:, None, None], 0).sum(0)  # (4, B, size, size)
    return values.gather(0, weight_of_value.argmax(0, keepdim=True))[0]


def _at_resolution(x: Tensor, shares: Tensor) -> Tensor:
    """Images (B, C, S, S) as they look from `shares` (B,) of their rows and columns: what is between is lost.

    As nnU-Net simulates low resolution: the nearest pixel stays, and those that stay are resized back, here
    linearly. A share of 1 gives the image itself.
    """
    size = x.shape[-1]
    n_kept = (shares * size).round().clamp(min=1)[:, None]  # (B, 1), as numbers with a fraction
    centres = (torch.arange(size, device=x.device) + 0.5) * n_kept / size - 0.5  # (B, S): places among those kept
    before = centres.floor()
    weights = centres - before
    last = n_kept - 1
    # Of the kept ones beside each place, the pixels that they are of.
    low, high = (((kept.clamp(min=0).minimum(last) + 0.5) * size / n_kept).long() for kept in (before, before + 1))
    for dim in (2, 3):
        shape = [len(x), 1, 1, 1]
        shape[dim] = size
        lower, upper = (x.gather(dim, index.view(shape).expand_as(x)) for index in (low, high))
        x = lower + (upper - lower) * weights.view(shape)
    return x


def _sample(x: Tensor, places: Tensor, mode: str) -> Tensor:
    return grid_sample(x, places, mode, padding_mode="reflection", align_corners=False)
