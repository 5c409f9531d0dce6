"""Image files in a folder for each class."""

from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.image_rows import HELD_OUT, ImageRows, RowSplits, read_bytes

_TEST_FRACTION = 0.1  # of class folders that come without a held-out split
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def read_class_folders(data_dir: Path) -> RowSplits | None:
    """train/CLASS/*.png (or .jpg, ...) with test/CLASS/*.png, or class folders alone; classes by sorted names.

    Without a held-out folder, the hash of each file decides whether it is held out, so equal files fall on the
    same side; of a class of two images or more, one is held out. None without class folders. Raises DataError for
    a class without images, for one that only the held-out split has, and for a file that cannot be read.
    """
    root = data_dir / "train" if _class_folders(data_dir / "train") else data_dir
    names = tuple(_class_folders(root))
    if set(names) <= {"train", *HELD_OUT}:  # no folders, or those of splits without classes in them
        return None
    rows = _read_classes(root, names)
    held_out = [data_dir / name for name in HELD_OUT if _class_folders(data_dir / name)]
    if held_out:
        return rows, _read_classes(held_out[0], names), names
    is_test = _held_out(rows)
    return _selected(rows, ~is_test), _selected(rows, is_test), names


def _class_folders(root: Path) -> list[str]:
    """The sorted names of the folders in `root`, if one of them holds an image."""
    if not root.is_dir():
        return []
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [folder.name for folder in folders] if any(map(_image_paths, folders)) else []


def _image_paths(folder: Path) -> list[Path]:
    paths = (path for path in folder.glob("[!.]*") if path.suffix.lower() in _SUFFIXES)  # macOS leaves ._NAME.png
    return sorted(paths)


def _read_classes(root: Path, names: tuple[str, ...]) -> ImageRows:
    paths: list[Path] = []
    labels: list[int] = []
    for name in _class_folders(root):
        if name not in names:
            raise DataError(f"{root / name}: no training image is of this class: add some, or remove the folder")
        in_class = _image_paths(root / name)
        if not in_class:
            raise DataError(f"{root / name} holds no image: remove the folder, or add images of its class")
        paths += in_class
        labels += [names.index(name)] * len(in_class)
    return ImageRows([read_bytes(path) for path in paths], np.array(labels, dtype=np.int64), list(map(str, paths)))


def _held_out(rows: ImageRows) -> np.ndarray:
    """(N,) bool: about a tenth, and of a class that has none among them the image that comes first by its hash."""
    positions = np.array([_position(content) for content in rows.images])
    is_test = positions < _TEST_FRACTION
    for label in np.unique(rows.labels):
        of_class = positions[rows.labels == label]
        if not (of_class < _TEST_FRACTION).any() and len(np.unique(of_class)) > 1:
            is_test |= positions == of_class.min()  # wherever this file is
    return is_test


def _position(content: bytes) -> float:
    """Uniform in [0, 1), and the same for the same file."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") / 2**64


def _selected(rows: ImageRows, mask: np.ndarray) -> ImageRows:
    kept = np.flatnonzero(mask)
    return ImageRows([rows.images[i] for i in kept], rows.labels[kept], [rows.places[i] for i in kept])
