import hashlib
import http.server
import io
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_sets import SHARED, encoded, hwc, random_pixels
from PIL import Image

from data.errors import DataError
from data.images import pets
from data.images.masked import BACKGROUND, BORDER, PET, masks_from_trimaps
from data.images.pets import load_pets, load_test_pets

REAL = SHARED / "oxford-iiit-pet"
TRAIN, TEST = ("cat_2", "dog_1", "cat_1"), ("dog_7", "cat_3")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "cache"))


def trimap_of(height=24, width=30, seed=0):
    """As on disk, with all of 1, 2 and 3."""
    return np.random.default_rng(seed).integers(1, 4, (height, width), dtype=np.uint8)


def write_pair(root, name, image, trimap):
    (root / "images" / f"{name}.jpg").write_bytes(image)
    (root / "annotations" / "trimaps" / f"{name}.png").write_bytes(trimap)


def write_list(root, file_name, lines):
    (root / "annotations" / file_name).write_text(
        "#Image CLASS-ID SPECIES BREED ID\n" + "".join(f"{n}\n" for n in lines)
    )


@pytest.fixture
def root(tmp_path) -> Path:
    """The official layout with five small pictures."""
    root = tmp_path / "pets"
    (root / "images").mkdir(parents=True)
    (root / "annotations" / "trimaps").mkdir(parents=True)
    for seed, name in enumerate(TRAIN + TEST):
        image = encoded(hwc(random_pixels(1, 3, 24, 30, seed=seed)[0]), "JPEG")
        write_pair(root, name, image, encoded(trimap_of(seed=seed)))
    write_list(root, "trainval.txt", [f"{name} 1 1 1" for name in TRAIN])
    write_list(root, "test.txt", [f"{name} 1 1 1" for name in TEST])
    return root


def fails(root, *parts):
    """Loading ends in a DataError whose one line has all the parts."""
    with pytest.raises(DataError) as error:
        load_pets(None if root is None else str(root), image_size=16)
    message = str(error.value)
    assert "\n" not in message and "at 0x" not in message
    for part in parts:
        assert str(part) in message
    return message


def first(root, size=None):
    """Picture and trimap of the first training example, as arrays."""
    train = load_pets(str(root), image_size=size or 16).train
    return train.images[0].numpy(), train.trimaps[0].numpy()


# What is read


def test_pictures_and_trimaps_are_squeezed_whole_in_the_order_of_the_lists(root):
    splits = load_pets(str(root), image_size=16)
    assert splits.train.names == list(TRAIN) and splits.test.names == list(TEST)
    for split in (splits.train, splits.test):
        n = len(split)
        assert split.images.shape == (n, 3, 16, 16) and split.trimaps.shape == (n, 16, 16)
        assert split.images.dtype == split.trimaps.dtype == torch.uint8
        assert split.images.is_contiguous()
        for i, name in enumerate(split.names):
            image = Image.open(root / "images" / f"{name}.jpg").resize((16, 16), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(split.images[i].permute(1, 2, 0).numpy(), np.asarray(image))
            trimap = np.asarray(Image.open(root / "annotations" / "trimaps" / f"{name}.png"))
            rows, columns = ((np.arange(16) + 0.5) * length // 16 for length in (24, 30))
            nearest = trimap[rows.astype(int)[:, None], columns.astype(int)]
            np.testing.assert_array_equal(split.trimaps[i].numpy(), np.array([99, 1, 0, 2])[nearest])


def test_trimap_values_are_mapped_right_on_a_picture(root):
    """A white animal on a black ground, its edge grey: each colour has its class."""
    grey = np.zeros((32, 32), np.uint8)
    grey[8:24, 8:24], grey[10:22, 10:22] = 128, 255
    trimap = np.select([grey == 255, grey == 128], [1, 3], 2).astype(np.uint8)
    write_pair(root, TRAIN[0], encoded(grey), encoded(trimap))
    image, classes = first(root, 32)
    for level, value in ((255, PET), (0, BACKGROUND), (128, BORDER)):
        np.testing.assert_array_equal(classes == value, (image == level).all(0))


def test_unseen_breeds_are_out_of_the_training_and_all_of_the_test(root):
    splits = load_pets(str(root), image_size=16)
    found = splits.with_unseen(["dog"])
    assert found.train.names == ["cat_2", "cat_1"] and found.test.names == ["dog_7"]
    assert torch.equal(found.train.images, splits.train.images[[0, 2]])
    assert torch.equal(found.test.trimaps, splits.test.trimaps[:1])
    with pytest.raises(DataError, match="dogs: no test picture is of it; there are cat, dog"):
        splits.with_unseen(["dogs"])
    with pytest.raises(DataError, match="leaves no picture to train on"):
        splits.with_unseen(["dog", "cat"])


@pytest.mark.parametrize("inner", ["", "oxford-iiit-pet"])
def test_the_folder_or_its_parent(root, tmp_path, inner):
    expected = first(root)
    if inner:
        parent = tmp_path / "parent"
        parent.mkdir()
        root.rename(parent / inner)
        root = parent
    for a, b in zip(first(root), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {"lossless": True})],
)
def test_pictures_are_decoded_by_content_whatever_their_suffix(root, form, options):
    pixels = np.full((20, 20, 3), (250, 128, 6), np.uint8)
    write_pair(root, TRAIN[0], encoded(pixels, form, **options), encoded(trimap_of(20, 20)))
    assert first(root)[0][:, 8, 8].tolist() == [250, 128, 6]


def saved(mode, colour, form="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, (20, 20), colour).save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (saved("L", 90, "JPEG"), (90, 90, 90)),
        (saved("CMYK", (255, 0, 0, 0), "JPEG", quality=100), (0, 255, 255)),
        (saved("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (saved("RGBA", (10, 20, 30, 0)), (255, 255, 255)),
        (saved("LA", (70, 255)), (70, 70, 70)),
        (saved("1", 1), (255, 255, 255)),
        (saved("I;16", 90 * 256), (90, 90, 90)),
    ],
    ids=["grey", "CMYK", "opaque", "transparent", "grey-alpha", "bilevel", "16-bit"],
)
def test_colour_modes_of_pictures(root, content, expected):
    write_pair(root, TRAIN[0], content, encoded(trimap_of(20, 20)))
    image = first(root)[0]
    assert np.abs(image.astype(int) - np.array(expected)[:, None, None]).max() <= 1


def test_a_picture_of_a_palette_shows_its_colours(root):
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    file = io.BytesIO()
    palette.save(file, "PNG")
    write_pair(root, TRAIN[0], file.getvalue(), encoded(trimap_of(20, 20)))
    assert first(root)[0][:, 3, 3].tolist() == [10, 20, 30]


def test_trimaps_of_other_modes(root):
    trimap = trimap_of(16, 16)
    picture = encoded(random_pixels(1, 16, 16)[0])
    as_colours = Image.fromarray(trimap).convert("P")  # indices that are the greys
    shuffled = Image.fromarray((3 - trimap).astype(np.uint8)).convert("P")
    shuffled.putpalette([3, 3, 3, 2, 2, 2, 1, 1, 1])  # indices 0 to 2, greys 3 to 1
    bright = Image.fromarray(trimap).convert("P")
    bright.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])  # colours for the eye, indices 1 to 3
    opaque = np.full_like(trimap, 255)
    for image in (
        as_colours,
        shuffled,
        bright,
        Image.fromarray(np.stack([trimap] * 3, -1)),
        Image.fromarray(np.stack([trimap] * 3 + [opaque], -1)),
        Image.fromarray(np.stack([trimap, opaque], -1)),
        Image.fromarray(trimap.astype(np.uint16)),
    ):
        file = io.BytesIO()
        image.save(file, "PNG")
        write_pair(root, TRAIN[0], picture, file.getvalue())
        np.testing.assert_array_equal(first(root)[1], np.array([99, 1, 0, 2])[trimap])


def photograph(pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(pixels, exif=exif)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_trimap_of_the_stored_size_is_on_the_stored_pixels(root, orientation):
    stored = random_pixels(1, 24, 30)[0]
    write_pair(root, TRAIN[0], photograph(stored, orientation), encoded(trimap_of()))
    expected = np.asarray(Image.fromarray(stored).resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(first(root)[0][0], expected)


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(6, -1), (8, 1)])
def test_a_trimap_of_the_upright_size_is_on_the_upright_picture(root, orientation, quarter_turns):
    stored = random_pixels(1, 24, 30)[0]
    write_pair(root, TRAIN[0], photograph(stored, orientation), encoded(trimap_of(30, 24)))
    upright = Image.fromarray(np.rot90(stored, quarter_turns).copy())
    np.testing.assert_array_equal(first(root)[0][0], np.asarray(upright.resize((16, 16), Image.Resampling.BICUBIC)))


def test_pixels_are_cached_by_the_content_of_all_files(root, monkeypatch):
    train = load_pets(str(root), image_size=16).train
    assert load_pets(str(root), image_size=8).train.images.shape == (3, 3, 8, 8)
    with monkeypatch.context() as context:
        context.setattr(pets, "decode_pair", None)  # not to be called
        again = load_pets(str(root), image_size=16).train
        assert torch.equal(again.images, train.images) and torch.equal(again.trimaps, train.trimaps)
    (root / "annotations" / "trimaps" / f"{TRAIN[1]}.png").write_bytes(encoded(np.full((24, 30), 2, np.uint8)))
    changed = load_pets(str(root), image_size=16).train
    assert torch.equal(changed.images, train.images)
    assert (changed.trimaps[1] == BACKGROUND).all() and torch.equal(changed.trimaps[0], train.trimaps[0])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared data")
def test_real_pictures():
    splits = load_pets(str(SHARED), image_size=32)
    assert len(splits.train) == 300 and len(splits.test) == 298
    assert not set(splits.train.names) & set(splits.test.names)
    images, trimaps = (
        torch.cat([getattr(split, name) for split in (splits.train, splits.test)]) for name in ("images", "trimaps")
    )
    assert set(trimaps.flatten().unique().tolist()) == {BACKGROUND, PET, BORDER}
    assert 100 < images.float().mean() < 140
    masks = masks_from_trimaps(trimaps, "binary", "pet").float()
    centre, corners = masks[:, 12:20, 12:20].mean(), masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert centre > 0.85 and corners < 0.2  # pets are in the middle


# What is refused


def test_lists(root):
    test_list = root / "annotations" / "test.txt"
    for line, *parts in (
        ("cat_3 1 1", "line 2", "NAME CLASS-ID"),
        ("cat_3 1 1 1 1", "line 2"),
        ("my cat 1 1 1", "line 2"),
        ("cat_3 a 1 1", "line 2", "three numbers"),
    ):
        write_list(root, "test.txt", [line])
        fails(root, test_list, *parts)
    write_list(root, "test.txt", ["dog_7 1 1 1", "", "cat_3 1 1 1", "dog_7 1 1 1"])
    fails(root, test_list, "line 5: dog_7 stands in line 2 too")
    write_list(root, "test.txt", ["dog_7 1 1 1", "dog_1 1 1 1"])
    fails(root, test_list, "line 3: dog_1 is in trainval.txt too, line 3")
    write_list(root, "test.txt", [])
    fails(root, test_list, "lists no picture")
    test_list.unlink()
    fails(root, root / "annotations", "no test.txt", "NAME CLASS-ID")


def test_line_ends_and_a_byte_order_mark_do_not_matter(root):
    lines = "\r\n".join(f"{name} 1 1 1" for name in TRAIN)
    (root / "annotations" / "trainval.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert load_pets(str(root), image_size=16).train.names == list(TRAIN)


def test_missing_files(root):
    image, trimap = root / "images" / "dog_7.jpg", root / "annotations" / "trimaps" / "cat_1.png"
    image.unlink()
    fails(root, f"{image} is missing")
    trimap.unlink()
    fails(root, f"{trimap} is missing")


def test_folders_without_the_data_set(root, tmp_path):
    fails(tmp_path / "none", tmp_path / "none", "not a folder")
    (root / "annotations").rename(tmp_path / "elsewhere")
    fails(root, root, "images/NAME.jpg", "annotations/trimaps/NAME.png", "images.tar.gz")


@pytest.mark.parametrize("value", [0, 4, 255])
def test_other_trimap_values(root, value):
    trimap = trimap_of()
    trimap[5, 7] = value
    path = root / "annotations" / "trimaps" / f"{TRAIN[1]}.png"
    path.write_bytes(encoded(trimap))
    fails(root, path, f"value {value} in row 5, column 7", "1 for pet, 2 for background and 3 for border")


def test_a_trimap_in_colours(root):
    path = root / "annotations" / "trimaps" / f"{TRAIN[1]}.png"
    path.write_bytes(encoded(np.stack([trimap_of(seed=seed) for seed in range(3)], -1)))
    fails(root, path, "is in colour")


def test_a_trimap_of_another_size(root):
    path = root / "annotations" / "trimaps" / f"{TRAIN[1]}.png"
    path.write_bytes(encoded(trimap_of(24, 29)))
    fails(root, path, "29x24", "30x24", f"{TRAIN[1]}.jpg")


def test_damaged_pictures(root):
    image, trimap = root / "images" / f"{TRAIN[1]}.jpg", root / "annotations" / "trimaps" / f"{TRAIN[1]}.png"
    whole_image, whole_trimap = image.read_bytes(), trimap.read_bytes()
    for damaged in (whole_image[: len(whole_image) // 2], whole_image[:-30], whole_image[:50], b"text", b""):
        image.write_bytes(damaged)
        fails(root, f"{image}: cannot decode")
    image.write_bytes(whole_image)
    middle = len(whole_trimap) // 2
    flipped = whole_trimap[:middle] + bytes([whole_trimap[middle] ^ 1]) + whole_trimap[middle + 1 :]
    for damaged in (whole_trimap[:middle], flipped):
        trimap.write_bytes(damaged)
        fails(root, f"{trimap}: cannot decode")


def test_of_several_damaged_pictures_the_first_is_named(root):
    for name in TRAIN[1:]:
        (root / "images" / f"{name}.jpg").write_bytes(b"text")
    fails(root, f"{TRAIN[1]}.jpg")


# Tarballs


@pytest.fixture
def tarballs(root, tmp_path, monkeypatch) -> Path:
    """A folder with the tarballs of `root`, which now count as the official ones."""
    folder = tmp_path / "tarballs"
    folder.mkdir()
    for part, mode in (("images", "w:gz"), ("annotations", "w")):  # the name says gz, whatever is in it
        path = folder / f"{part}.tar.gz"
        with tarfile.open(path, mode) as tar:
            tar.add(root / part, part)
        monkeypatch.setitem(pets.MD5, part, hashlib.md5(path.read_bytes()).hexdigest())
    return folder


def assert_same(splits, expected):
    for split, other in ((splits.train, expected.train), (splits.test, expected.test)):
        assert torch.equal(split.images, other.images) and torch.equal(split.trimaps, other.trimaps)
        assert split.names == other.names


def temporaries(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("tmp*")]


def test_tarballs_in_the_folder_are_used(root, tarballs, tmp_path):
    expected = load_pets(str(root), image_size=16)
    assert_same(load_pets(str(tarballs), image_size=16), expected)
    assert_same(load_pets(str(tarballs), image_size=16), expected)  # from what was unpacked
    assert sorted(path.name for path in tarballs.iterdir()) == ["annotations.tar.gz", "images.tar.gz"]
    (tarballs / "annotations.tar.gz").unlink()
    (root / "annotations").rename(tarballs / "annotations")
    assert_same(load_pets(str(tarballs), image_size=16), expected)
    assert not temporaries(tmp_path)


def test_a_damaged_tarball(tarballs, tmp_path):
    path = tarballs / "images.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    fails(tarballs, path, "md5", pets.MD5["images"], "thor.robots.ox.ac.uk/pets/images.tar.gz")
    assert not list((tmp_path / "cache").rglob("*.jpg"))


def test_a_tarball_that_leaves_its_folder_is_refused(tarballs, tmp_path, monkeypatch):
    path = tarballs / "images.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        member = tarfile.TarInfo("../../../escaped.txt")
        tar.addfile(member, io.BytesIO())
    monkeypatch.setitem(pets.MD5, "images", hashlib.md5(path.read_bytes()).hexdigest())
    fails(tarballs, path, "cannot unpack")
    assert not list(tmp_path.rglob("escaped.txt")) and not temporaries(tmp_path)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.requested.append(self.path)


@pytest.fixture
def server(tarballs, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tarballs)) as server:
        server.requested = []
        monkeypatch.setattr(pets, "BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_the_tarballs_are_downloaded_once(root, server, tmp_path):
    expected = load_pets(str(root), image_size=16)
    assert_same(load_pets(None, image_size=16), expected)
    assert sorted(server.requested) == ["/annotations.tar.gz", "/images.tar.gz"]
    assert_same(load_pets(None, image_size=16), expected)
    assert len(server.requested) == 2
    assert not temporaries(tmp_path) and not list((tmp_path / "cache").rglob("*.tar.gz"))


def test_a_download_that_is_not_the_official_file_is_not_unpacked(server, tmp_path, monkeypatch):
    monkeypatch.setitem(pets.MD5, "images", "0" * 32)
    fails(None, "images.tar.gz", "md5", "0" * 32)
    assert not list((tmp_path / "cache").rglob("*.jpg")) and not temporaries(tmp_path)


def test_a_file_that_the_server_does_not_have(server, tarballs):
    (tarballs / "annotations.tar.gz").unlink()
    fails(None, "annotations.tar.gz", "404", "--data_dir", "demo")


def test_without_network_the_error_is_quick_and_names_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setattr(pets, "BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    start = time.perf_counter()
    fails(None, "http://127.0.0.1:9/annotations.tar.gz", "network", "--data_dir", "images/NAME.jpg", "demo")
    assert time.perf_counter() - start < 5
    assert not temporaries(tmp_path)


def test_a_cache_that_cannot_take_the_download_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"cannot write to .*file.*ONECYCLE_CACHE.*--data_dir"):
        load_pets(None, image_size=8)


def test_the_test_list_is_enough_for_a_test(root):
    splits = load_pets(str(root), image_size=16)
    whole = load_test_pets(str(root), image_size=16, whole=True)
    assert whole.names == [*TRAIN, *TEST]
    (root / "annotations" / "trainval.txt").unlink()
    alone = load_test_pets(str(root), image_size=16)
    assert alone.names == list(TEST) and torch.equal(alone.images, splits.test.images)
    assert torch.equal(alone.trimaps, splits.test.trimaps)
    with pytest.raises(DataError, match=r"no trainval\.txt"):
        load_test_pets(str(root), image_size=16, whole=True)
