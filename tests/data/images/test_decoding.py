import io

import numpy as np
import pytest
from image_sets import encoded, hwc, random_pixels
from PIL import Image

from data.errors import DataError
from data.images.decoding import decode_image, decode_picture, squeezed

# Squares for classifiers


def test_images_of_the_right_size_keep_their_pixels():
    colour = random_pixels(1, 3, 32, 32)[0]
    np.testing.assert_array_equal(decode_image(encoded(hwc(colour)), "", 32, 3), colour)
    grey = random_pixels(1, 28, 28)[0]
    np.testing.assert_array_equal(decode_image(encoded(grey), "", 28, 1), grey[None])
    np.testing.assert_array_equal(decode_image(encoded(grey), "", 28, 3), np.stack([grey] * 3))


def test_grey_is_the_luma_of_colour():
    colour = random_pixels(1, 3, 32, 32)[0]
    luma = np.tensordot([0.299, 0.587, 0.114], colour.astype(float), 1)
    assert np.abs(decode_image(encoded(hwc(colour)), "", 32, 1)[0] - luma).max() <= 1


def test_other_sizes_are_scaled_by_the_shorter_side_and_cut_in_the_middle():
    wide = random_pixels(1, 64, 128)[0]
    whole = np.asarray(Image.fromarray(wide).resize((64, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(decode_image(encoded(wide), "", 32, 1)[0], whole[:, 16:48])
    high = decode_image(encoded(wide.T.copy()), "", 32, 1)[0]
    # Pillow scales in two passes, and before 13 rounds between them.
    np.testing.assert_allclose(high.astype(int), whole[:, 16:48].T.astype(int), atol=1)
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    middle = decode_image(encoded(stripes), "", 16, 1)[0, :, 2:-2]  # every other column is lost unless averaged
    assert np.abs(middle.astype(int) - 127).max() <= 6
    assert decode_image(encoded(np.full((1, 3), 7, np.uint8)), "", 8, 3).tolist() == np.full((3, 8, 8), 7).tolist()


def test_other_modes():
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    np.testing.assert_array_equal(decode_image(encoded(deep), "", 8, 1)[0], deep // 256)
    assert Image.open(io.BytesIO(encoded(deep))).mode.startswith("I")

    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    for options, expected in (({}, (10, 20, 30)), ({"transparency": 1}, (255, 255, 255))):
        file = io.BytesIO()
        palette.save(file, "PNG", **options)
        assert decode_image(file.getvalue(), "", 8, 3)[:, 4, 4].tolist() == list(expected)

    for mode, colour, expected in (
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (100, 0, 0, 255), (100, 0, 0)),
        ("LA", (50, 255), (50, 50, 50)),
        ("1", 1, (255, 255, 255)),
    ):
        file = io.BytesIO()
        Image.new(mode, (8, 8), colour).save(file, "PNG")
        assert decode_image(file.getvalue(), "", 8, 3)[:, 0, 0].tolist() == list(expected)

    file = io.BytesIO()
    Image.new("F", (8, 8), 0.5).save(file, "TIFF")
    with pytest.raises(DataError, match=r"here: .*floating-point"):
        decode_image(file.getvalue(), "here", 8, 3)


def test_a_photograph_is_turned_upright():
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright = decode_image(encoded(pixels, exif=exif), "", 16, 1)
    np.testing.assert_array_equal(upright[0], pixels[::-1])


def test_damaged_images():
    content = encoded(hwc(random_pixels(1, 3, 32, 32)[0]))
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    checksum = content[:-13] + bytes([content[-13] ^ 1]) + content[-12:]  # of the pixels; the end mark follows
    jpeg = encoded(hwc(random_pixels(1, 3, 32, 32)[0]), "JPEG")
    for damaged in (
        content[:middle],
        content[:-20],
        flipped,
        checksum,
        content[:20],
        jpeg[: len(jpeg) // 2],
        b"text",
        b"",
    ):
        with pytest.raises(DataError, match=r"^a\.parquet row 7\b") as error:
            decode_image(damaged, "a.parquet row 7", 32, 3)
        assert "\n" not in str(error.value) and "0x" not in str(error.value)


@pytest.mark.parametrize("position", range(0, 1200, 40))
def test_no_flipped_bit_of_a_png_goes_unnoticed(position):
    pixels = random_pixels(1, 3, 20, 20)[0]
    content = bytearray(encoded(hwc(pixels)))
    content[position] ^= 4
    try:
        decoded = decode_image(bytes(content), "here", 20, 3)
    except DataError:
        return
    np.testing.assert_array_equal(decoded, pixels)


# Files


def test_a_file_is_read_upright_in_rgb_as_it_is_to_be_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    colours = Image.new("RGB", (6, 4), (200, 100, 50))
    colours.save(tmp_path / "photo.jpg", exif=exif)
    assert decode_picture(tmp_path / "photo.jpg").size == (4, 6)
    Image.new("RGBA", (6, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    deep = np.full((4, 6), 200 << 8, np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name, level in (("clear.png", 255), ("deep.png", 200)):
        picture = decode_picture(tmp_path / name)
        assert picture.mode == "RGB" and set(np.unique(picture)) == {level}
    assert squeezed(colours, 8).shape == (3, 8, 8)


@pytest.mark.parametrize("content", [b"", b"text", encoded(np.zeros((8, 8), np.uint8))[:40]])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: cannot decode the image") as error:
        decode_picture(path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="absent"):
        decode_picture(tmp_path / "absent.png")
