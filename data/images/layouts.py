"""Which of the layouts of labelled images a folder holds, at its top or as other programs nest it."""

import tarfile
import tempfile
from pathlib import Path

from data.errors import DataError
from data.images.cifar_archives import (
    holds_cifar_binary,
    holds_cifar_pickles,
    read_cifar_binary,
    read_cifar_pickles,
)
from data.images.class_folders import read_class_folders
from data.images.idx import holds_mnist, read_mnist
from data.images.parquet import holds_parquet, read_parquet
from data.images.rows import RowSplits, reason, visible_folders

_READERS = (
    (holds_parquet, read_parquet),
    (holds_cifar_pickles, read_cifar_pickles),
    (holds_cifar_binary, read_cifar_binary),
    (holds_mnist, read_mnist),
)
_ARCHIVES = ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz", "cifar-10-binary.tar.gz")
_DEPTH = 2  # folders that files may be nested in: MNIST/raw
LAYOUTS = (
    "train-*.parquet with test-*.parquet (or train/*.parquet with test/*.parquet), cifar-10-batches-py, "
    "cifar-100-python, cifar-10-batches-bin or their archives, train-images-idx3-ubyte[.gz] and the three other "
    "MNIST files, or train/CLASS/*.png with test/CLASS/*.png"
)


def read_image_folder(data_dir: Path) -> RowSplits:
    """The data set that lies in `data_dir`, or up to two folders below, as torchvision's MNIST/raw does.

    Raises DataError for a folder that is missing, that holds no layout or several data sets at one depth, and as
    the reader of the layout does.
    """
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder")
    folders = [data_dir]
    for _ in range(1 + _DEPTH):
        found = [(folder, read) for folder in folders for holds, read in _READERS if holds(folder)]
        if len(found) > 1:
            names = ", ".join(str(folder.relative_to(data_dir)) for folder, _ in found)
            raise DataError(
                f"{data_dir} holds several data sets ({names}): give one of these folders as --data_dir"
            )
        if found:
            folder, read = found[0]
            return read(folder)
        folders = [inner for folder in folders for inner in visible_folders(folder)]
    splits = _read_archive(data_dir) or read_class_folders(data_dir)
    if splits is None:
        raise DataError(f"{data_dir} holds none of the layouts that are understood: {LAYOUTS}")
    return splits


def _read_archive(data_dir: Path) -> RowSplits | None:
    """One of CIFAR's archives, unpacked for as long as it takes to read it."""
    found = [data_dir / name for name in _ARCHIVES if (data_dir / name).is_file()]
    if not found:
        return None
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{data_dir} holds several archives ({names}): unpack one, and give its folder as --data_dir"
        )
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with tarfile.open(found[0]) as tar:
                tar.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(f"cannot unpack {found[0]} ({reason(error)}): fetch it again, or unpack it") from error
        try:
            return read_image_folder(Path(temporary))
        except DataError as error:
            raise DataError(str(error).replace(temporary, str(found[0]))) from error
