"""Labelled images as they are stored: what the readers of all layouts give, and what they share."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import DataError

HELD_OUT = ("test", "validation", "valid", "val")  # the first one that is there is the test split
MAX_CLASSES = 1 << 16  # a larger label is a mistake


@dataclass(frozen=True)
class ImageRows:
    """A split as it is stored."""

    images: list[bytes] | np.ndarray  # encoded files, or pixels of (N, C, H, W) uint8
    labels: np.ndarray  # (N,) int64
    places: list[str]  # file and row of each image, for messages


def no_rows() -> ImageRows:
    """A split that is not there."""
    return ImageRows([], np.empty(0, dtype=np.int64), [])


# Training and test split and class names: what a reader makes of a folder. No names if the layout has none, and no
# training rows where the folder has a test split alone.
RowSplits = tuple[ImageRows, ImageRows, tuple[str, ...] | None]


def visible_folders(folder: Path) -> list[Path]:
    """The folders in `folder`, sorted, without hidden ones and what macOS leaves in archives."""
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def reason(error: Exception) -> str:
    """An exception's message, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
