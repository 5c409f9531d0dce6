"""Pictures that come from a browser: files and drawings, as Pillow images, within limits.

Gradio decodes what is uploaded by rules of its own. Here it does not: the project's decoding says how a picture is
turned, flattened and refused.
"""

import base64
import binascii
import io
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio
from PIL import Image

from data.errors import DataError
from data.images.decoding import decode_content, decoding
from data.images.rows import read_bytes
from tools.demonstration.messages import told_in_a_line

MAX_FILE_SIZE = 20 * 2**20  # bytes
MAX_PIXELS = 50 * 10**6
MIN_SIDE = 8  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # Pillow knows some that start other programs
MAX_DRAWING = 2 * 10**6  # letters of a data URL
PNG_URL = "data:image/png;base64,"


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded: the name that it had, and where it lies now."""

    name: str
    path: Path

    def picture(self) -> Image.Image:
        """As it is to be seen: upright, RGB. Raises DataError, in a line without the server's paths."""
        return decoded_within_limits(read_bytes(self.path), self.name)


def picture_input(examples: Sequence[Image.Image]) -> tuple[gradio.State, list[Callable]]:
    """Where to put a picture, above examples to click; and what to call with what is to happen then.

    What listens gets an `Upload`, in the state that is returned.
    """
    picture = gradio.Image(
        label="Picture",
        type="filepath",
        sources=["upload", "clipboard"],
        height=300,
        buttons=["fullscreen"],
        elem_classes=["picture"],
    )
    upload = gradio.State(None)
    take = {"fn": take_upload, "inputs": [picture], "outputs": [upload], "api_visibility": "private"}
    arrivals = [picture.upload(preprocess=False, **take).success]
    picture.clear(lambda: None, outputs=[upload], api_visibility="private")
    if examples:
        shown = gradio.Examples([[path] for path in example_files(examples)], [picture], label="Examples")
        arrivals.append(shown.load_input_event.then(preprocess=False, **take).success)
    return upload, arrivals


def example_files(examples: Sequence[Image.Image]) -> list[str]:
    """Files with these pictures, where Gradio keeps its own."""
    folder = tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])
    paths = [os.path.join(folder, f"example-{i}.png") for i in range(1, len(examples) + 1)]
    for path, image in zip(paths, examples, strict=True):
        image.save(path)
    return paths


@told_in_a_line
def take_upload(described: Mapping[str, Any] | None) -> Upload | None:
    """The upload that the browser describes. Raises DataError for any file that is not one of these."""
    if described is None:
        return None
    path = Path(described.get("path") or "").resolve()
    if not path.is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()) or not path.is_file():
        raise DataError("that is no uploaded file: upload a picture")
    return Upload(Path(described.get("orig_name") or path.name).name, path)


def given(upload: Upload | None) -> Upload:
    """The upload. Raises DataError where there is none."""
    if upload is None:
        raise DataError("there is no picture yet: upload one, or click an example")
    return upload


def drawing_of_url(url: object) -> Image.Image:
    """The picture in a canvas's data URL, RGB. Raises DataError where there is none."""
    if not isinstance(url, str) or not url.startswith(PNG_URL):
        raise DataError("nothing is drawn yet: draw with the mouse, or click an example")
    if len(url) > MAX_DRAWING:
        raise DataError("the drawing is too large: clear it and draw anew")
    try:
        content = base64.b64decode(url.removeprefix(PNG_URL), validate=True)
    except binascii.Error as error:
        raise DataError("the drawing came through damaged: clear it and draw anew") from error
    return decoded_within_limits(content, "the drawing")


def decoded_within_limits(content: bytes, name: str) -> Image.Image:
    """An encoded picture as it is to be seen: upright, RGB; of several frames the first.

    Raises DataError for one of another format, damaged, or of too many or too few pixels; it is decoded only where
    its header is within these limits.
    """
    with decoding(name), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width:,} x {height:,} pixels: make it smaller, at most {MAX_PIXELS // 10**6} million fit"
        )
    if min(width, height) < MIN_SIDE:
        raise DataError(f"{name} has {width:,} x {height:,} pixels: take one with sides of at least {MIN_SIDE}")
    return decode_content(content, name)


def png_url(image: Image.Image) -> str:
    """A picture as the address of an <img>."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return PNG_URL + base64.b64encode(buffer.getvalue()).decode()
