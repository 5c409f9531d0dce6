import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="gradio is missing: pip install -r requirements-optional.txt")

from data.errors import DataError
from tools.demonstration.generation import centred_digit
from tools.demonstration.uploads import (
    MAX_DRAWING,
    PNG_URL,
    Upload,
    decoded_within_limits,
    drawing_of_url,
    given,
    png_url,
    take_upload,
)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_a_photograph_is_turned_upright():
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[274] = 6  # the camera was held upright
    upright = decoded_within_limits(encoded(image, "JPEG", exif=exif), "photo.jpg")
    assert upright.size == (20, 40) and upright.mode == "RGB"


def test_transparent_parts_are_white():
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    shown = decoded_within_limits(encoded(image), "logo.png")
    assert shown.getpixel((0, 0)) == (255, 0, 0) and shown.getpixel((15, 0)) == (255, 255, 255)


def test_grey_of_16_bits_keeps_its_upper_byte_and_an_animation_its_first_frame():
    grey = Image.fromarray(np.full((16, 16), 0x80FF, np.uint16))
    assert decoded_within_limits(encoded(grey), "scan.png").getpixel((0, 0)) == (0x80,) * 3
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    animated = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded_within_limits(animated, "cat.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"%PDF-1.7\n1 0 obj\n", "no known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no known format"),  # Pillow would start Ghostscript
        (b"", "no known format"),
        (encoded(Image.new("RGB", (16, 16)))[:50], "cannot decode"),
        (encoded(Image.new("RGB", (1, 1))), "1 x 1 pixels"),
        (encoded(Image.new("L", (20_000, 1))), "20,000 x 1 pixels"),
        (png_header(10_000, 8_000), "at most 50 million"),
        (png_header(20_000, 20_000), "exceeds limit"),
    ],
)
def test_what_is_no_picture_is_refused_by_a_line_with_its_name(content, said):
    with pytest.raises(DataError, match=said) as refusal:
        decoded_within_limits(content, "x.png")
    assert "x.png" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_drawing_comes_as_the_address_of_a_png():
    assert drawing_of_url(png_url(Image.new("RGB", (28, 28), "white"))).getpixel((0, 0)) == (255, 255, 255)
    for url in (None, 7, "", "data:text/html;base64,AAAA", "file:///etc/passwd"):
        with pytest.raises(DataError, match="nothing is drawn"):
            drawing_of_url(url)
    for url, said in ((PNG_URL + "A" * MAX_DRAWING, "too large"), (PNG_URL + "&&", "damaged"), (PNG_URL, "decode")):
        with pytest.raises(DataError, match=said):
            drawing_of_url(url)


def test_a_drawn_digit_is_moved_to_the_middle():
    drawing = Image.new("RGB", (280, 280))
    drawing.paste("white", (10, 10, 30, 76))
    digit = np.asarray(centred_digit(drawing))
    rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
    assert digit.shape == (100, 100) and (rows[0], rows[-1]) == (17, 82) and (columns[0], columns[-1]) == (40, 59)
    with pytest.raises(DataError, match="nothing is drawn"):
        centred_digit(Image.new("RGB", (280, 280)))


def test_only_files_that_were_uploaded_are_taken(tmp_path, monkeypatch):
    inside = tmp_path / "uploads"
    inside.mkdir()
    (inside / "a.png").write_bytes(encoded(Image.new("RGB", (16, 16))))
    (tmp_path / "secret.png").write_bytes((inside / "a.png").read_bytes())
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(inside))
    upload = take_upload({"path": str(inside / "a.png"), "orig_name": "../my cat.png"})
    assert upload == Upload("my cat.png", inside / "a.png") and given(upload).picture().size == (16, 16)
    assert take_upload(None) is None
    for path in (tmp_path / "secret.png", inside / ".." / "secret.png", inside, Path("/etc/passwd"), None):
        with pytest.raises(Exception, match="no uploaded file"):
            take_upload({"path": path and str(path), "orig_name": "a.png"})
    with pytest.raises(DataError, match="no picture yet"):
        given(None)
