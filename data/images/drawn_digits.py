"""The ten digits drawn by code, for the demo recipe: a data set that needs no network and no files.

A digit is a pen's path, of lines and elliptic arcs, white on black. Slant, width and height, position, the pen's
width and a smooth bending of the path are random: style for a generative model to learn, and enough of it that a
linear model makes mistakes where a small convolutional net makes next to none.
"""

import itertools

import numpy as np
import torch
from torch import Tensor

from data.memory import require_memory

STEP = 0.25  # the longest piece of a path; a digit is 2 high
SLANT = (-0.15, 0.4)  # shift to the right for each unit upwards: most hands lean that way
HALF_HEIGHT = (0.26, 0.34)  # of the picture's side
WIDTH = (0.75, 1.2)  # of the digit, relative to its height's
PEN_RADIUS = (0.025, 0.06)  # of the picture's side
BEND = 0.1  # largest shift of a point by one of the waves that bend the path
N_WAVES = 3
SHIFT = 0.07  # of the picture's side: largest shift from the middle, where there is room


def drawn_digits(
    n_train: int = 4000, n_test: int = 1000, image_size: int = 28, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Training images (n_train, 1, S, S) uint8 and labels (n_train,) int64, the same of the test, class names.

    Classes are as equally frequent as the counts allow. Train and test come from different random streams of
    `seed`: neither changes with the size of the other.
    """
    n, pixels = n_train + n_test, f"digits of {image_size}x{image_size} pixels"
    require_memory(8 * n * image_size**2, f"{n:,} {pixels}, while they are drawn,", "lower --image_size")
    train = _draw(n_train, image_size, np.random.default_rng([seed, 0]))
    test = _draw(n_test, image_size, np.random.default_rng([seed, 1]))
    return *train, *test, tuple(str(digit) for digit in range(len(DIGITS)))


def _draw(n: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    labels = rng.permutation(np.arange(n) % len(DIGITS))
    slant, half_height, width, pen_radius = (
        rng.uniform(*bounds, (n, 1)) for bounds in (SLANT, HALF_HEIGHT, WIDTH, PEN_RADIUS)
    )
    wave_vector = rng.uniform(-2.5, 2.5, (n, N_WAVES, 2))  # radians per unit: less than one wave along a digit
    phase = rng.uniform(0, 2 * np.pi, (n, N_WAVES, 1))
    bend = rng.uniform(-BEND, BEND, (n, N_WAVES, 2))
    shift = rng.uniform(-1, 1, (n, 1, 2))

    images = np.empty((n, 1, size, size), np.uint8)
    for label, strokes in enumerate(DIGITS):
        mine = labels == label
        points = np.concatenate(strokes)  # (P, 2)
        waves = np.sin(wave_vector[mine] @ points.T + phase[mine])  # (m, N_WAVES, P)
        x, y = np.moveaxis(points + np.einsum("mwp,mwc->mpc", waves, bend[mine]), -1, 0)  # (m, P)
        path = np.stack([width[mine] * x - slant[mine] * y, y], -1) * half_height[mine, None]
        low, high = path.min(1, keepdims=True), path.max(1, keepdims=True)  # (m, 1, 2)
        room = 0.5 - (high - low) / 2 - pen_radius[mine, None] - 1 / size  # to the blank pixels of the border
        path += 0.5 - (low + high) / 2 + shift[mine] * room.clip(0, SHIFT)
        ends = np.cumsum([len(stroke) for stroke in strokes])[:-1]  # no line from a stroke to the next
        starts = np.delete(np.arange(len(points) - 1), ends - 1)
        distance = _distance_to_path(size * path[:, starts], size * path[:, starts + 1], size)
        cover = np.clip(size * pen_radius[mine, None] + 0.5 - distance, 0, 1)
        images[mine, 0] = (255 * cover).round()
    return torch.from_numpy(images), torch.from_numpy(labels)


def _distance_to_path(start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """(m, S, S) float32: from each pixel's centre to the nearest of its picture's pieces, in pixels.

    `start`, `end`: (m, pieces, 2) of x and y in pixels, y downwards.
    """
    centres = np.arange(size, dtype=np.float32) + 0.5
    nearest = np.full((len(start), size, size), np.inf, np.float32)  # squared
    for a, b in zip(np.moveaxis(start, 1, 0), np.moveaxis(end, 1, 0), strict=True):
        (ax, ay), (ux, uy) = (c.astype(np.float32).T[:, :, None, None] for c in (a, b - a))
        dx, dy = centres - ax, centres[:, None] - ay  # (m, 1, S) and (m, S, 1)
        squared_length = np.maximum(ux**2 + uy**2, 1e-12)
        along = np.clip(dx * (ux / squared_length) + dy * (uy / squared_length), 0, 1)  # (m, S, S)
        np.minimum(nearest, (dx - along * ux) ** 2 + (dy - along * uy) ** 2, out=nearest)
    return np.sqrt(nearest)


# --- the pen's paths: (P, 2) points of x and y each, y downwards from -1 (top) to 1 (bottom) ---


def _line(*corners: tuple[float, float]) -> np.ndarray:
    legs = []
    for start, end in itertools.pairwise(corners):
        n_pieces = int(np.ceil(np.hypot(end[0] - start[0], end[1] - start[1]) / STEP))
        legs.append(np.linspace(start, end, n_pieces + 1))
    return np.concatenate(legs)


def _arc(x: float, y: float, radius_x: float, radius_y: float, start: float, end: float) -> np.ndarray:
    """Of the ellipse around (x, y), from `start` to `end` in degrees: 0 is right, 90 down, 180 left, 270 up."""
    n_pieces = int(np.ceil(np.radians(abs(end - start)) * max(radius_x, radius_y) / STEP))
    angle = np.radians(np.linspace(start, end, n_pieces + 1))
    return np.stack([x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)], -1)


def _joined(*parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts)


DIGITS = (
    (_arc(0, 0, 0.6, 1, -90, 270),),
    (_line((-0.35, -0.6), (0, -1), (0, 1)),),
    (_joined(_arc(0, -0.45, 0.55, 0.55, 190, 385), _line((0.5, -0.22), (-0.6, 1), (0.6, 1))),),
    (_joined(_arc(0, -0.5, 0.5, 0.5, 205, 450), _arc(0, 0.5, 0.58, 0.5, -90, 150)),),
    (_line((0.2, -1), (-0.65, 0.35), (0.65, 0.35)), _line((0.25, -0.35), (0.25, 1))),
    (_line((0.5, -1), (-0.4, -1), (-0.45, -0.1)), _arc(0, 0.38, 0.58, 0.62, 220, 510)),
    (_joined(_arc(0.4, 0.4, 1, 1.4, 270, 180), _arc(0, 0.4, 0.6, 0.6, 180, -180)),),
    (_line((-0.55, -1), (0.55, -1), (-0.15, 1)),),
    (_arc(0, -0.5, 0.48, 0.5, 90, 450), _arc(0, 0.5, 0.6, 0.5, -90, 270)),
    (_joined(_arc(0, -0.4, 0.55, 0.6, 360, 0), _line((0.55, -0.4), (0.4, 1))),),
)  # in the order of the labels: the strokes of each
