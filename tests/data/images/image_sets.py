"""What the tests of image sets share: small sets in files, and checks of what is read from them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.images.labelled import load_image_splits

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NAMES = ("apple", "boat", "cat")
CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def random_pixels(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encoded(pixels, form="PNG", **options):
    """(H, W) or (H, W, C) uint8 as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def hwc(pixels):
    return pixels.transpose(1, 2, 0)


def assert_split(split, pixels, labels):
    assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
    assert split.images.is_contiguous() and len(split) == len(labels)
    np.testing.assert_array_equal(split.images.numpy(), pixels)
    assert split.labels.tolist() == list(labels)


def fails(data_dir, *parts):
    """The one-line message of the DataError that loading ends in; it has all the parts."""
    with pytest.raises(DataError) as error:
        load_image_splits("x/y", str(data_dir))
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


def write_parquet(path, contents, labels, image_name="img", label_name="label", names=NAMES, plain=False):
    images = contents if plain else [{"bytes": content, "path": None} for content in contents]
    columns = {
        image_name: pyarrow.array(images, None if plain else pyarrow.struct({"bytes": "binary", "path": "string"})),
        "id": pyarrow.array([str(i) for i in range(len(labels))]),
        label_name: pyarrow.array(labels, pyarrow.int64()),
    }
    table = pyarrow.table(columns)
    if names:
        features = {image_name: {"_type": "Image"}, label_name: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def png_set(n, seed=0):
    pixels = random_pixels(n, 3, 32, 32, seed=seed)
    return pixels, [encoded(hwc(image)) for image in pixels]
