"""Encoded images as Pillow images and as pixels: decoded as a whole, or refused with the name of the file.

The one place for what image files bring along: orientation marks, 16 bits, transparency, damage, several frames.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from data.errors import DataError
from data.images.rows import read_bytes, reason

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Mode = Literal["L", "RGB"]  # Pillow's names
MODES: dict[int, Mode] = {1: "L", 3: "RGB"}  # by the number of channels


# -- files ------------------------------------------------------------------------------------------------


def decode_picture(path: Path) -> "Picture":
    """An image file as it is to be seen: upright, RGB. Raises DataError, with the file, if it cannot be read."""
    return decode_content(read_bytes(path), path)


def decode_content(content: bytes, where: str | Path) -> "Picture":
    """An encoded image as it is to be seen: upright, RGB. Raises DataError, with `where`, if it cannot be read."""
    with decoding(where):
        return flattened(upright(_decoded(content)), "RGB")


def open_picture(path: Path) -> "Picture":
    """A decoded image as it is stored; of several frames the first. Raises DataError, with the file."""
    content = read_bytes(path)
    with decoding(path):
        return _decoded(content)


def decode_image(content: bytes, where: str, image_size: int, n_channels: int) -> np.ndarray:
    """An encoded image (PNG, JPEG, ...) as (n_channels, image_size, image_size) uint8.

    The shorter side becomes `image_size` (bicubic, antialiased) and the middle is cut out. An image that has
    this size and mode already keeps its pixels. Transparent parts become white, 16-bit grey loses its lower
    byte, and a camera's orientation mark is followed. RGB becomes grey by ITU-R 601-2 luma.

    Raises DataError, with `where`, for an image that is damaged, cut short or in no known format.
    """
    with decoding(where):
        return fitted(_decoded(content), image_size, MODES[n_channels])


def _decoded(content: bytes) -> "Picture":
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # PNG's checksums: decoding alone misses one flipped bit in a hundred
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


@contextmanager
def decoding(where: str | Path) -> Iterator[None]:
    """Makes DataErrors of Pillow's: its decoders raise anything, SyntaxError included."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except Exception as error:
        why = "no known format" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise DataError(f"{where}: cannot decode the image ({why}): replace it, or leave it out") from error


# -- decoded images ---------------------------------------------------------------------------------------


def upright(image: "Picture") -> "Picture":
    """Turned as the camera's orientation mark says."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def flattened(image: "Picture", mode: Mode) -> "Picture":
    """In grey or RGB of 8 bits: transparent parts become white, 16-bit grey loses its lower byte.

    Raises ValueError for floating point.
    """
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.mode.startswith("I"):  # Pillow would clip 16-bit grey at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def fitted(image: "Picture", image_size: int, mode: Mode) -> np.ndarray:
    """An image as it is to be seen, as pixels (C, image_size, image_size) uint8: see `decode_image`."""
    from PIL import Image, ImageOps

    image = flattened(upright(image), mode)
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def squeezed(image: "Picture", image_size: int) -> np.ndarray:
    """An image as pixels (3, image_size, image_size) uint8, all of it, its aspect ratio not kept.

    Bicubic, antialiased, as its mask is squeezed too. It is not turned upright: the mask decides about that.
    """
    from PIL import Image

    resized = flattened(image, "RGB").resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)
