"""Masked pictures drawn by code for the demo recipe: a data set that needs no network and no files.

Each shows one animal, a smooth blob, before a background. The animal is striped; the background is checked or
mottled, in the same two colours, in about as much of each, and as coarse. So no pixel tells by itself whether it
belongs to the animal; its surroundings do.
"""

import numpy as np
import torch

from data.images.masked import BACKGROUND, BORDER, PET, MaskedImages
from data.memory import require_memory

BORDER_WIDTH = 2.5  # pixels: the band around the outline that the trimap calls BORDER
HARMONICS = (2, 3, 4, 5)  # of the outline: bumps around the animal
MOTTLES = 6  # waves that cross in a mottled texture
NOISE = 8.0  # standard deviation in pixel units, 0 to 255


def textured_shapes(
    n_train: int = 400, n_test: int = 100, image_size: int = 64, seed: int = 0
) -> tuple[MaskedImages, MaskedImages]:
    """Training and test pictures of `image_size` x `image_size` pixels, each with one animal.

    Train and test come from different random streams of `seed`: neither changes with the size of the other.
    """
    n, pixels = n_train + n_test, f"pictures of {image_size}x{image_size} pixels"
    require_memory(64 * n * image_size**2, f"{n:,} {pixels}, while they are drawn,", "lower --image_size")
    train = _draw("train", n_train, image_size, np.random.default_rng([seed, 0]))
    test = _draw("test", n_test, image_size, np.random.default_rng([seed, 1]))
    return train, test


def _draw(split: str, n: int, size: int, rng: np.random.Generator) -> MaskedImages:
    distance = _distance_to_outline(n, size, rng)  # pixels
    cover = np.clip(0.5 - distance, 0, 1)  # how much of a pixel the animal covers, 0 to 1
    stripes, checks, mottles = (_texture(n, n_waves, size, rng) for n_waves in (1, 2, MOTTLES))
    surroundings = np.where(rng.random((n, 1, 1)) < 0.5, checks, mottles)
    texture = (surroundings + cover * (stripes - surroundings))[:, None]  # 0 is the one colour, 1 the other

    colour = rng.uniform(0, 1, (n, 3, 1, 1)).astype(np.float32)
    other = (colour + rng.uniform(0.3, 0.7, colour.shape).astype(np.float32)) % 1  # in each channel by 0.3 or more
    noise = NOISE * rng.standard_normal((n, 3, size, size), np.float32)
    images = 255 * (colour + texture * (other - colour)) + noise

    trimaps = np.where(distance < 0, PET, BACKGROUND).astype(np.uint8)
    trimaps[np.abs(distance) < BORDER_WIDTH / 2] = BORDER
    return MaskedImages(
        torch.from_numpy(images.round().clip(0, 255).astype(np.uint8)),
        torch.from_numpy(trimaps),
        [f"{split}_{i}" for i in range(n)],
    )


def _distance_to_outline(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(n, S, S) float32, in pixels, negative inside: to first order, exact at the outline.

    The outline, seen from a centre, has the radius R * (1 + the real part of sum_k c_k e^(i k angle)).
    """
    column = (n, 1, 1)
    radius = rng.uniform(0.24, 0.36, column) * size
    x0, y0 = ((0.5 + rng.uniform(-0.12, 0.12, column)) * size for _ in range(2))
    centres = np.arange(size) + 0.5  # of the pixels
    from_centre = ((centres - x0) + 1j * (centres[:, None] - y0)).astype(np.complex64)  # (n, S, S)
    length = np.abs(from_centre)
    direction = from_centre / np.maximum(length, 1e-6)  # e^(i angle)

    outline, slope = np.ones_like(length), np.zeros_like(length)  # the radius and its derivative, over R
    power = direction
    for k in HARMONICS:
        power = power * direction
        strength = rng.uniform(0, 0.4 / k, column) * np.exp(2j * np.pi * rng.random(column))
        wave = strength.astype(np.complex64) * power
        outline += wave.real
        slope -= k * wave.imag
    # Where the outline runs aslant to the radius, it is nearer than along the radius.
    return (length - radius.astype(np.float32) * outline) / np.hypot(1, slope / outline)


def _texture(n: int, n_waves: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(n, S, S) float32, half of it 0 and half 1 but for soft edges: the sign of a sum of plane waves.

    The waves of a texture have one period and evenly spread directions: one makes stripes, two checks, many a
    mottle without direction.
    """
    period = rng.uniform(0.08, 0.14, (n, 1, 1)) * size  # pixels
    angle = np.pi * (rng.random((n, 1, 1)) + np.arange(n_waves)[:, None] / n_waves)  # (n, waves, 1)
    phase = 2 * np.pi * rng.random(angle.shape)
    along = 2 * np.pi / period * np.arange(size)  # (n, 1, S)
    x, y = along * np.cos(angle), along * np.sin(angle) + phase  # (n, waves, S)
    # cos(x + y) = cos x cos y - sin x sin y, summed over the waves as one matrix product
    columns = np.concatenate([np.cos(x), -np.sin(x)], 1).astype(np.float32)
    rows = np.concatenate([np.cos(y), np.sin(y)], 1).astype(np.float32)
    waves = rows.transpose(0, 2, 1) @ columns  # (n, S, S)
    slope = period.astype(np.float32) / (2 * np.pi * np.sqrt(np.float32(n_waves)))  # about 1 level a pixel at edges
    return np.clip(0.5 + slope * waves, 0, 1)
