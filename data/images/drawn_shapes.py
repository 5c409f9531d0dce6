"""Ten classes of pictures drawn by code, for the demo recipe: a data set that needs no network and no files.

A class is a shape. Position, size, tilt and both colours are random, and a shape is as often darker than its
background as lighter, so that no single pixel tells the class: a linear model names about a quarter of the
test pictures right, a small convolutional net nearly all.
"""

import numpy as np
import torch
from torch import Tensor

TILT = np.pi / 12  # radians: the largest rotation to either side, too small to mistake the stripes' direction
NOISE = 8.0  # standard deviation in pixel units, 0 to 255
HALF_SIDE = 0.8  # of the square, also of the striped and the checked one
PERIOD = 4 * HALF_SIDE / 5  # of stripes and checks: five of them, edge to edge


def drawn_shapes(
    n_train: int = 4000, n_test: int = 1000, image_size: int = 32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]:
    """Training images (n_train, 3, S, S) uint8 and labels (n_train,) int64, the same of the test, class names.

    Classes are as equally frequent as the counts allow. Train and test come from different random streams of
    `seed`: neither changes with the size of the other.
    """
    train = _draw(n_train, image_size, np.random.default_rng([seed, 0]))
    test = _draw(n_test, image_size, np.random.default_rng([seed, 1]))
    return *train, *test, tuple(shape.__name__ for shape in SHAPES)


def _draw(n: int, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    labels = rng.permutation(np.arange(n) % len(SHAPES))
    column = (n, 1, 1)
    radius = rng.uniform(0.28, 0.42, column) * size  # pixels
    x0, y0 = (size / 2 + rng.uniform(-1, 1, column) * (size / 2 - radius) for _ in range(2))
    tilt = rng.uniform(-TILT, TILT, column)
    centres = np.arange(size) + 0.5  # of the pixels
    dx, dy = (centres - x0) / radius, (centres[:, None] - y0) / radius
    x = (dx * np.cos(tilt) + dy * np.sin(tilt)).astype(np.float32)  # (n, S, S): in the shape's own coordinates
    y = (dy * np.cos(tilt) - dx * np.sin(tilt)).astype(np.float32)

    cover = np.empty((n, 1, size, size), np.float32)  # how much of a pixel the shape covers, 0 to 1
    for label, shape in enumerate(SHAPES):
        mine = labels == label
        cover[mine, 0] = np.clip(0.5 - shape(x[mine], y[mine]) * radius[mine], 0, 1)

    background = rng.uniform(0, 1, (n, 3, 1, 1))
    foreground = (background + rng.uniform(0.3, 0.7, background.shape)) % 1  # each channel differs by 0.3 or more
    background, contrast = background.astype(np.float32), (foreground - background).astype(np.float32)
    images = 255 * (background + cover * contrast) + NOISE * rng.standard_normal((n, 3, size, size), np.float32)
    return torch.from_numpy(images.round().clip(0, 255).astype(np.uint8)), torch.from_numpy(labels)


# --- signed distances to the shapes, negative inside: of points (x, y), y downwards, for shapes of radius 1 ---


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.9


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75) - 0.2


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(x, y) - 0.95, 0.8 - np.hypot(x - 0.5, y))


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - HALF_SIDE


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - 0.25  # equilateral; the middle of its height lies above its centroid
    return np.maximum(np.sqrt(0.75) * np.abs(x) - 0.5 * y, y) - 0.55


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.95, np.minimum(x, y) - 0.28)


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)  # from the nearest of the five points
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    point, notch_along, notch_across = 1.05, 0.45 * np.cos(fifth / 2), 0.45 * np.sin(fifth / 2)
    edge = np.hypot(point - notch_along, notch_across)  # its length, from the point to the notch beside it
    return ((along - point) * notch_across + across * (point - notch_along)) / edge


def horizontal_stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(_stripes(y), square(x, y))


def vertical_stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(_stripes(x), square(x, y))


def checkerboard(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = _stripes(x), _stripes(y)
    checks = np.minimum(np.maximum(a, b), -np.minimum(a, b))  # where stripes of both directions meet, or of none
    return np.maximum(checks, square(x, y))


def _stripes(t: np.ndarray) -> np.ndarray:
    return np.abs((t + PERIOD / 2) % PERIOD - PERIOD / 2) - PERIOD / 4


SHAPES = (
    circle,
    ring,
    crescent,
    square,
    triangle,
    cross,
    star,
    horizontal_stripes,
    vertical_stripes,
    checkerboard,
)  # in the order of the labels
