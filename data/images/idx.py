"""MNIST's IDX files, plain or gzipped."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.images.rows import ImageRows, RowSplits, no_rows, read_bytes, reason


def holds_mnist(folder: Path) -> bool:
    return any(_idx_paths(folder, f"{split}-images", 3) for split in ("train", "t10k"))


def read_mnist(folder: Path) -> RowSplits:
    """The four files train-images-idx3-ubyte and so on (or train-images.idx3-ubyte), each plain or gzipped.

    The two of the test may be alone.

    Raises DataError for a file that is missing, damaged, cut short or of another type, and for images and labels
    that differ in number.
    """
    of_train = _idx_paths(folder, "train-images", 3) + _idx_paths(folder, "train-labels", 1)
    train = _read_idx_split(folder, "train") if of_train else no_rows()
    return train, _read_idx_split(folder, "t10k"), None


def _idx_paths(folder: Path, name: str, n_dims: int) -> list[Path]:
    stems = (f"{name}{separator}idx{n_dims}-ubyte" for separator in "-.")
    paths = (folder / f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz"))
    return [path for path in paths if path.is_file()]


def _read_idx_split(folder: Path, split: str) -> ImageRows:
    arrays = []
    for name, n_dims in ((f"{split}-images", 3), (f"{split}-labels", 1)):
        paths = _idx_paths(folder, name, n_dims)
        if not paths:
            raise DataError(f"{folder} lacks {name}-idx{n_dims}-ubyte, plain or .gz: fetch it to the others")
        arrays.append((paths[0], _read_idx(paths[0], n_dims)))
    (image_path, images), (label_path, labels) = arrays
    if len(images) != len(labels):
        raise DataError(
            f"{image_path} has {len(images)} images but {label_path} has {len(labels)} labels: "
            "the two files must belong together"
        )
    return ImageRows(
        images[:, None], labels.astype(np.int64), [f"{label_path} row {row}" for row in range(len(labels))]
    )


def _read_idx(path: Path, n_dims: int) -> np.ndarray:
    """An array of bytes: two zeros, the type 0x08, the number of dimensions, each as a big-endian uint32, data."""
    content = read_bytes(path)
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is no complete gzip file ({reason(error)}): fetch it again") from error
    header = 4 + 4 * n_dims
    if content[:4] != bytes((0, 0, 8, n_dims)) or len(content) < header:
        raise DataError(f"{path} does not start as an IDX file of bytes in {n_dims} dimensions: fetch it again")
    shape = struct.unpack(f">{n_dims}I", content[4:header])
    if len(content) != header + math.prod(shape) or 0 in shape[1:]:
        raise DataError(
            f"{path} has {len(content) - header} bytes of data, but its header says "
            f"{'×'.join(map(str, shape))}: fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
