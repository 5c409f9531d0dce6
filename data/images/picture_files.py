"""Picture files as Pillow images: decoded as a whole or refused with the file's name."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import DataError
from data.images.rows import read_bytes, reason

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


def decode_picture(path: Path) -> "Picture":
    """An image file as it is to be seen: upright, RGB. Raises DataError, with the file, if it cannot be read."""
    from PIL import ImageOps

    image = open_picture(path)
    with decoding(path):
        return to_rgb(ImageOps.exif_transpose(image))


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Makes DataErrors of Pillow's: its decoders raise anything, SyntaxError included."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except Exception as error:
        why = "no known format" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise DataError(f"{path}: cannot decode the image ({why}): replace it, or leave it out") from error


def open_picture(path: Path) -> "Picture":
    """A decoded image; of several frames the first."""
    from PIL import Image

    content = read_bytes(path)
    with decoding(path):
        with Image.open(io.BytesIO(content)) as image:
            image.verify()  # PNG's checksums: decoding alone misses one flipped bit in a hundred
        image = Image.open(io.BytesIO(content))
        image.load()
    return image


def to_rgb(image: "Picture") -> "Picture":
    """Transparent parts become white, 16-bit grey loses its lower byte. Raises ValueError for floating point."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
