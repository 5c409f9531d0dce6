"""CIFAR-10 and CIFAR-100 as their authors pack them: pickles for Python, or rows of bytes."""

import io
import pickle
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.images.rows import MAX_CLASSES, ImageRows, RowSplits, no_rows, read_bytes, reason


def _holds_cifar_10(folder: Path) -> bool:
    return (folder / "data_batch_1").is_file() or _are_files(folder, "test_batch", "batches.meta")


def _are_files(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def holds_cifar_pickles(folder: Path) -> bool:
    return _holds_cifar_10(folder) or any(_are_files(folder, split, "meta") for split in ("train", "test"))


def read_cifar_pickles(folder: Path) -> RowSplits:
    """cifar-10-batches-py or cifar-100-python (with its fine labels); the test batch may be alone.

    Raises DataError for a file that is missing or damaged, and for a pickle that holds anything but what the CIFAR
    files do; nothing in it is executed.
    """
    if _holds_cifar_10(folder):
        train = [folder / f"data_batch_{number}" for number in range(1, 6)]
        return _read_batches(train, folder / "test_batch", folder / "batches.meta", "")
    return _read_batches([folder / "train"], folder / "test", folder / "meta", "fine_")


def _read_batches(train: list[Path], test: Path, meta: Path, prefix: str) -> RowSplits:
    names = _read_pickle(meta).get(f"{prefix}label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise DataError(f"{meta} holds no list `{prefix}label_names`: unpack the official archive again")
    return (
        _joined([_read_batch(path, f"{prefix}labels") for path in _unless_absent(train)]),
        _read_batch(test, f"{prefix}labels"),
        tuple(_text(name) for name in names),
    )


def _read_batch(path: Path, label_key: str) -> ImageRows:
    batch = _read_pickle(path)
    labels = batch.get(label_key)
    match batch.get("data"):
        case _Inert(state=(_, (int(n), 3072), _Inert(arguments=(b"u1" | "u1", *_)), is_fortran, bytes(content))):
            pass
        case _:
            raise DataError(f"{path}: `data` is no uint8 array of N×3072: unpack the official archive again")
    if len(content) != n * 3072:
        raise DataError(f"{path}: `data` has {len(content)} bytes, not {n}×3072: unpack the official archive again")
    if not isinstance(labels, list) or len(labels) != n or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: `{label_key}` is no list of {n} integers: unpack the official archive again")
    labels = np.array([max(-1, min(label, MAX_CLASSES)) for label in labels], dtype=np.int64)  # no overflow
    pixels = np.frombuffer(content, np.uint8).reshape(n, 3072, order="F" if is_fortran else "C")
    return ImageRows(pixels.reshape(n, 3, 32, 32), labels, [f"{path} row {row}" for row in range(n)])


def _unless_absent(train: list[Path]) -> list[Path]:
    """The training files, of which some may be missing by mistake; none where all are."""
    return train if any(path.is_file() for path in train) else []


def _joined(parts: list[ImageRows]) -> ImageRows:
    if not parts:
        return no_rows()
    return ImageRows(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [place for part in parts for place in part.places],
    )


class _Inert:
    """Stands for everything that a pickled array names: it keeps the arguments and the state and runs no code.

    numpy's own constructors are not safe to call: a forged dtype lets them take bytes for object pointers.
    """

    def __init__(self, *arguments):
        self.arguments = arguments
        self.state = None

    def __setstate__(self, state):
        self.state = state


class _CifarUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, strings and arrays (as `_Inert`), and refuses anything else."""

    def find_class(self, module: str, name: str):
        if (module, name) in {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),  # since numpy 2
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        }:
            return _Inert
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1_bytes
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file does")


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes other than in latin1")
    return text.encode("latin1")


def _read_pickle(path: Path) -> dict:
    """A CIFAR file's dict, its keys as str."""
    content = read_bytes(path)
    try:
        batch = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
        return {_text(key): value for key, value in batch.items()}
    except Exception as error:  # bytes that are no pickle raise anything
        raise DataError(
            f"{path} is not a CIFAR pickle ({reason(error)}): unpack the official archive again"
        ) from error


def _text(string: bytes | str) -> str:
    return string.decode(errors="replace") if isinstance(string, bytes) else string


def holds_cifar_binary(folder: Path) -> bool:
    return (folder / "data_batch_1.bin").is_file() or _are_files(folder, "test_batch.bin", "batches.meta.txt")


def read_cifar_binary(folder: Path) -> RowSplits:
    """cifar-10-batches-bin: a row is one byte of label, then 3×32×32 of pixels. The test batch may be alone.

    Raises DataError for a file that is missing or cut short.
    """
    paths = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    train = _joined([_read_binary_batch(path) for path in _unless_absent(paths)])
    names = read_bytes(folder / "batches.meta.txt").decode(errors="replace").split()
    return train, _read_binary_batch(folder / "test_batch.bin"), tuple(names)


def _read_binary_batch(path: Path) -> ImageRows:
    content = read_bytes(path)
    n, rest = divmod(len(content), 1 + 3072)
    if rest:
        raise DataError(
            f"{path} has {len(content)} bytes, no multiple of 1 + 3072: unpack the official archive again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(n, 1 + 3072)
    images = rows[:, 1:].reshape(n, 3, 32, 32)
    return ImageRows(images, rows[:, 0].astype(np.int64), [f"{path} row {row}" for row in range(n)])
