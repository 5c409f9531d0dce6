"""What the tests of own masks share: folders of small pictures with masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.images.masked_folders import load_masked_folder

SIZE = (30, 24)  # width and height


def blocks(seed: int, n: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) of the numbers 0 to n - 1, in blocks of 6 pixels; each of them occurs."""
    width, height = size
    cells = np.random.default_rng(seed).permutation(np.arange(width // 6 * (height // 6)) % n)
    return cells.reshape(height // 6, width // 6).repeat(6, 0).repeat(6, 1)


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_mask(path: Path, values, seed: int = 0, size: tuple[int, int] = SIZE, **options) -> None:
    """A mask of grey levels or of colours, all of which occur."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(values, np.uint8)[blocks(seed, len(values), size)]).save(path, **options)


def write_pairs(root: Path, picture: str, mask: str, n: int = 12, values=(0, 255), **options) -> None:
    for i in range(n):
        write_picture(root / picture.format(i), i)
        write_mask(root / mask.format(i), values, i, **options)


def load(root: Path, image_size: int = 16, **options):
    return load_masked_folder(root, image_size=image_size, **options)


def fails(root: Path, *parts, **options) -> None:
    """Loading ends in a DataError whose one line has all the parts."""
    with pytest.raises(DataError) as error:
        load(root, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
