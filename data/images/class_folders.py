"""Image files in a folder for each class."""

from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.images.rows import HELD_OUT, ImageRows, RowSplits, no_rows, read_bytes, visible_folders

_TRAIN_NAMES = ("train", "training")
_HELD_OUT_NAMES = ("test", "testing", *HELD_OUT[1:])  # the first one that is there is the test split
_TEST_FRACTION = 0.1  # of class folders that come without a held-out split
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def read_class_folders(data_dir: Path) -> RowSplits | None:
    """train/CLASS/*.png (or .jpg, ...) with test/CLASS/*.png, or class folders alone; classes by sorted names.

    Images may lie at any depth below their class, and all of it in one folder more, as archives unpack.
    Without a held-out folder, the hash of each file decides whether it is held out, so equal files fall on the
    same side; of a class of two images or more, one is held out. A held-out folder may be alone. None without class
    folders.

    Raises DataError for
    a class without images, for one that only the held-out split has, and for a file that cannot be read.
    """
    data_dir = _unwrapped(data_dir)
    train, held_out = (_folders_called(data_dir, names) for names in (_TRAIN_NAMES, _HELD_OUT_NAMES))
    root = train[0] if train else data_dir
    names = tuple(_class_folders(root))
    if {name.lower() for name in names} <= {*_TRAIN_NAMES, *_HELD_OUT_NAMES}:  # none, or splits without classes
        if not held_out:
            return None
        names = tuple(_class_folders(held_out[0]))
        return no_rows(), _read_classes(held_out[0], names), names
    rows = _read_classes(root, names)
    if held_out:
        return rows, _read_classes(held_out[0], names), names
    is_test = _held_out(rows)
    return _selected(rows, ~is_test), _selected(rows, is_test), names


def _class_folders(root: Path) -> list[str]:
    """The sorted names of the folders in `root`, if one of them holds an image."""
    folders = visible_folders(root)
    has_images = any(_is_image(path, folder) for folder in folders for path in folder.rglob("*"))
    return [folder.name for folder in folders] if has_images else []


def _unwrapped(data_dir: Path) -> Path:
    """The folder itself, or the only one in it where that holds the classes or splits."""
    folders = visible_folders(data_dir)
    if len(folders) != 1 or folders[0].name.lower() in (*_TRAIN_NAMES, *_HELD_OUT_NAMES):
        return data_dir
    has_images = any(_is_image(path, folders[0]) for path in folders[0].iterdir())
    return data_dir if has_images or not _class_folders(folders[0]) else _unwrapped(folders[0])


def _folders_called(data_dir: Path, names: tuple[str, ...]) -> list[Path]:
    """The folders with classes in them that have one of the names, in any case, in the order of the names."""
    folders = [folder for folder in visible_folders(data_dir) if folder.name.lower() in names]
    return sorted(filter(_class_folders, folders), key=lambda folder: names.index(folder.name.lower()))


def _is_image(path: Path, folder: Path) -> bool:
    """By its suffix; macOS leaves ._NAME.png, and notebooks .ipynb_checkpoints."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in _SUFFIXES and not hidden


def _image_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path, folder))


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
