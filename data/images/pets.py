"""Oxford-IIIT Pet (Parkhi et al., Cats and Dogs, CVPR 2012): pictures of pets with a trimap each, as uint8 tensors.

From the official tarballs or from a folder in their layout:

    images/NAME.jpg
    annotations/trimaps/NAME.png    1 pet, 2 background, 3 border
    annotations/trainval.txt        lines `NAME CLASS-ID SPECIES BREED-ID`
    annotations/test.txt
"""

import errno
import hashlib
import itertools
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from data.cache import cache_dir, cached_arrays, content_key
from data.errors import DataError
from data.images.decoding import decoding, open_picture, squeezed, upright
from data.images.masked import BACKGROUND, BORDER, PET, MaskedImages
from data.images.rows import read_bytes, reason

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

BASE_URL = "https://thor.robots.ox.ac.uk/pets"  # where the older addresses at www.robots.ox.ac.uk lead to
MD5 = {"images": "5c4f3ee8e5d25df40f4fd59a7f44e54c", "annotations": "95a8c909bbe2e81eed6a22bccdf3f68f"}
_FOLDER = "oxford-iiit-pet"
_LISTS = ("trainval.txt", "test.txt")
_TIMEOUT_SECONDS = 10  # without an answer, or between two parts of it
_BLOCK = 1 << 20  # bytes that are read at a time
_CACHE_FORMAT = 1  # to be raised when the decoders give other pixels than before
_FROM_DISK = np.array([0, PET, BACKGROUND, BORDER], np.uint8)  # by the value on disk, 1 to 3
_LAYOUT = (
    "images/NAME.jpg with annotations/trimaps/NAME.png, annotations/trainval.txt and annotations/test.txt, "
    "or the official images.tar.gz and annotations.tar.gz"
)
_WAYS_OUT_OF_THE_CACHE = (
    "set ONECYCLE_CACHE to a folder with a gigabyte of room, or give --data_dir with the unpacked folders"
)


@dataclass(frozen=True)
class PetSplits:
    """The official lists: `train` is trainval.txt, `test` is test.txt, both in the order of the list."""

    train: MaskedImages
    test: MaskedImages

    def with_unseen(self, breeds: Sequence[str]) -> "PetSplits":
        """The same without `breeds` in the training pictures, and with them alone in the test pictures.

        A picture's name is that of its breed, an underscore and a number. Raises DataError for a breed without test
        pictures, and where none are left to train on.
        """
        is_unseen, is_tested = (
            torch.tensor([_breed(name) in breeds for name in split.names]) for split in (self.train, self.test)
        )
        tested = sorted({_breed(name) for name in self.test.names})
        for breed in breeds:
            if breed not in tested:
                raise DataError(f"--unseen_breeds {breed}: no test picture is of it; there are {', '.join(tested)}")
        if is_unseen.all():
            raise DataError(f"--unseen_breeds {' '.join(breeds)} leaves no picture to train on: name fewer breeds")
        return PetSplits(self.train.select(~is_unseen), self.test.select(is_tested))


def _breed(name: str) -> str:
    return name.rpartition("_")[0]


def holds_pets(data_dir: Path) -> bool:
    """Whether a folder has something of Oxford-IIIT Pet's own layout: its trimaps, lists or tarballs."""
    of_pets = (
        "annotations/trimaps",
        *(f"annotations/{name}" for name in _LISTS),
        *(f"{part}.tar.gz" for part in MD5),
    )
    return any((folder / name).exists() for folder in _folders(data_dir) for name in of_pets)


def _folders(data_dir: Path) -> tuple[Path, ...]:
    """Where the data set may lie: in the folder, or as torchvision and others nest it."""
    return data_dir, data_dir / _FOLDER, data_dir / _FOLDER / _FOLDER


def load_pets(data_dir: str | None, *, image_size: int) -> PetSplits:
    """The listed pictures and trimaps, squeezed to squares of `image_size` pixels; the aspect ratio is not kept.

    data_dir: a folder that holds images/ and annotations/, or either of them as its official tarball, or whose
        subfolder oxford-iiit-pet does, or the one in that. None: the official tarballs are downloaded, once, into
        the cache folder.

    A picture is scaled as a whole (bicubic, antialiased); the trimap by nearest neighbour, so it gets no new
    value. Pictures are decoded by their content, whatever their suffix, in any colour mode; transparent parts
    become white. Trimaps may be grey, RGB of equal channels, or palette images. Pixels are cached under the hash
    of all files.

    Raises DataError, with the file, where the folder lacks a file; for a list line that is malformed, a name
    that is listed twice or in both lists, and a list without names; for a picture or trimap that cannot be
    decoded or is cut short, trimap values other than 1, 2 and 3, and a trimap of another size than its picture;
    for a tarball with the wrong md5; and, without `data_dir`, where the server cannot be reached.
    """
    images, annotations = _downloaded() if data_dir is None else _find_parts(Path(data_dir))
    train_list, test_list = (_list_file(annotations, name) for name in _LISTS)
    train, test = _read_list(train_list), _read_list(test_list)
    for name, line in test.items():
        if name in train:
            raise DataError(
                f"{test_list} line {line}: {name} is in {train_list.name} too, line {train[name]}: "
                "take it out of one list, or the test is on a picture that was trained on"
            )
    trimaps = annotations / "trimaps"
    return PetSplits(
        train=_load_split(images, trimaps, list(train), image_size),
        test=_load_split(images, trimaps, list(test), image_size),
    )


def load_test_pets(data_dir: str, *, image_size: int, whole: bool = False) -> MaskedImages:
    """The pictures of test.txt, the only list that is asked for; with `whole` those of trainval.txt before them.

    Raises DataError as `load_pets` does.
    """
    images, annotations = _find_parts(Path(data_dir))
    names = [
        name for file in (_LISTS if whole else _LISTS[1:]) for name in _read_list(_list_file(annotations, file))
    ]
    return _load_split(images, annotations / "trimaps", names, image_size)


def _list_file(annotations: Path, name: str) -> Path:
    path = annotations / name
    if not path.is_file():
        raise DataError(
            f"{annotations} has no {name}: add it, with a line `NAME CLASS-ID SPECIES BREED-ID` a picture"
        )
    return path


def _find_parts(data_dir: Path) -> tuple[Path, Path]:
    """The folders images and annotations."""
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder")
    for folder in _folders(data_dir):
        if all((folder / part).is_dir() or _archive(folder, part).is_file() for part in MD5):
            images, annotations = (
                folder / part if (folder / part).is_dir() else _extracted(_archive(folder, part), part)
                for part in MD5
            )
            return images, annotations
    raise DataError(f"{data_dir} holds no Oxford-IIIT Pet: give a folder with {_LAYOUT}")


def _archive(folder: Path, part: str) -> Path:
    return folder / f"{part}.tar.gz"


def _read_list(path: Path) -> dict[str, int]:
    """The names of a list, in its order, with the number of the line (from 1) that each stands in."""
    lines: dict[str, int] = {}
    for number, line in enumerate(read_bytes(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) != 4 or not all(field.isdecimal() for field in fields[1:]):
            raise DataError(
                f"{path} line {number} is not `NAME CLASS-ID SPECIES BREED-ID` with three numbers: mend the line"
            )
        name = fields[0]
        if name in lines:
            raise DataError(f"{path} line {number}: {name} stands in line {lines[name]} too: remove one of them")
        lines[name] = number
    if not lines:
        raise DataError(f"{path} lists no picture: write a line `NAME CLASS-ID SPECIES BREED-ID` for each")
    return lines


# Pixels


def _load_split(images: Path, trimaps: Path, names: list[str], image_size: int) -> MaskedImages:
    pairs = [(images / f"{name}.jpg", trimaps / f"{name}.png") for name in names]
    for path in itertools.chain(*pairs):
        if not path.is_file():
            raise DataError(f"{path} is missing, but {path.stem} is listed: add it, or take the name off its list")
    from PIL import __version__ as pillow_version

    def decode() -> dict[str, np.ndarray]:
        pixels = np.empty((len(pairs), 3, image_size, image_size), np.uint8)
        classes = np.empty((len(pairs), image_size, image_size), np.uint8)

        def fill(row: int) -> None:
            pixels[row], classes[row] = decode_pair(*pairs[row], image_size)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(fill, range(len(pairs))):  # of several errors, the first row's is raised
                pass
        return {"images": pixels, "trimaps": classes}

    settings = {"image_size": image_size, "pillow": pillow_version, "format": _CACHE_FORMAT}
    contents = (read_bytes(path) for pair in pairs for path in pair)  # one at a time: the whole set is 800 MB
    arrays = cached_arrays(content_key(settings, contents), ("images", "trimaps"), decode)
    return MaskedImages(torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["trimaps"]), names)


def decode_pair(image_path: Path, trimap_path: Path, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (3, image_size, image_size) uint8 and its trimap (image_size, image_size) uint8 of named values.

    Raises DataError, with the file, for what `load_pets` refuses in a picture or trimap.
    """
    from PIL import Image

    image, trimap = open_picture(image_path), _values_on_disk(open_picture(trimap_path), trimap_path)
    height, width = trimap.shape
    with decoding(image_path):
        image = _oriented_like_trimap(image, (width, height))
    if image.size != (width, height):
        raise DataError(
            f"{trimap_path} has {width}x{height} pixels, but {image_path} has {image.width}x{image.height}: "
            "give the trimap the size of its picture"
        )
    with decoding(image_path):
        pixels = squeezed(image, image_size)
    square = (image_size, image_size)
    classes = np.asarray(Image.fromarray(_FROM_DISK[trimap]).resize(square, Image.Resampling.NEAREST))
    return pixels, classes


def _oriented_like_trimap(image: "Picture", size: tuple[int, int]) -> "Picture":
    """The official trimaps are drawn on the pixels as they are stored, and so is a trimap of the stored size.

    A trimap from a tool that turned the photograph upright has the turned size: then the mark is followed. Where
    both sizes agree (squares, half turns, mirrorings) nothing can tell, and the official rule holds.
    """
    if image.size == size:
        return image
    turned = upright(image)
    return turned if turned.size == size else image


def _values_on_disk(image: "Picture", path: Path) -> np.ndarray:
    """(H, W) of 1, 2 and 3: what a palette shows if these are its greys, else its indices."""
    values = np.asarray(image)
    if image.mode == "P":
        shown = np.asarray(image.convert("RGB"))
        if ((shown >= 1) & (shown <= 3)).all():
            values = shown
    elif image.mode in ("LA", "RGBA"):
        values = values[..., :-1]
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise DataError(f"{path} is in colour: a trimap is grey, 1 for pet, 2 for background and 3 for border")
        values = values[..., 0]
    wrong = ~np.isin(values, (1, 2, 3))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise DataError(
            f"{path}: value {int(values[row, column])} in row {row}, column {column} (from 0) means nothing: "
            "write 1 for pet, 2 for background and 3 for border"
        )
    return values.astype(np.uint8)


# Tarballs


def _cached_part(part: str) -> Path:
    return cache_dir() / _FOLDER / MD5[part] / part


def _downloaded() -> tuple[Path, Path]:
    """The folders images and annotations, in the cache: from the network, unless they are there."""
    for part in ("annotations", "images"):  # the small one first
        if not _cached_part(part).is_dir():
            with _folder_beside(_cached_part(part)) as temporary:
                archive = _archive(temporary, part)
                _fetch(f"{BASE_URL}/{archive.name}", archive)
                _extracted(archive, part)
    return _cached_part("images"), _cached_part("annotations")


def _extracted(archive: Path, part: str) -> Path:
    """The folder `part` of an official tarball, in the cache, where it appears only as a whole."""
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if md5 != MD5[part]:
        raise DataError(
            f"{archive} is damaged or not the official file, its md5 is {md5} and not {MD5[part]}: "
            f"fetch it again from {BASE_URL}/{part}.tar.gz, or unpack it if it is a file of your own"
        )
    folder = _cached_part(part)
    if not folder.is_dir():
        with _folder_beside(folder) as temporary:
            try:
                with tarfile.open(archive) as tar:  # gzipped or, for all its name, not
                    tar.extractall(temporary, filter="data")
                (temporary / part).rename(folder)
            except (tarfile.TarError, OSError) as error:
                if not folder.is_dir():  # else another process was first
                    raise DataError(
                        f"cannot unpack {archive} into {folder} ({reason(error)}): {_WAYS_OUT_OF_THE_CACHE}"
                    ) from error
    return folder


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same file system, so that what is in it can be renamed to `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=path.parent)
    except OSError as error:
        raise DataError(f"cannot write to {path.parent} ({error.strerror}): {_WAYS_OUT_OF_THE_CACHE}") from error
    with temporary as name:
        yield Path(name)


def _fetch(url: str, path: Path) -> None:
    """Raises DataError within seconds if no server answers, and where the download breaks off."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, path.open("wb") as file:
            size = int(response.headers.get("Content-Length", 0)) or None
            with tqdm(desc=path.name, total=size, unit="B", unit_scale=True, disable=None, leave=False) as bar:
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
    except (OSError, HTTPException) as error:  # URLError, timeouts and a full disk are OSErrors
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DataError(f"cannot write {path} ({error.strerror}): {_WAYS_OUT_OF_THE_CACHE}") from error
        raise DataError(
            f"cannot fetch {url} ({reason(error)}): connect to the network, or give --data_dir with a copy "
            f"({_LAYOUT}), or run the recipe demo, which needs no data"
        ) from error
