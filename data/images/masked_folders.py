"""Own pictures with a mask each, from a folder of image files.

The layouts are in data/images/mask_layouts.py, what mask values mean in data/images/mask_classes.py.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from data.cache import cached_arrays, content_key
from data.errors import DataError
from data.images.decoding import decoding, open_picture, squeezed, upright
from data.images.mask_classes import (
    Colour,
    FoundValues,
    ListedClass,
    MaskClasses,
    Value,
    are_class_numbers,
    find_classes,
    is_table,
    read_class_table,
)
from data.images.mask_layouts import Pair, SplitPairs, find_pairs
from data.images.masked import IGNORE, MaskSplit, MaskSplits
from data.images.rows import read_bytes
from data.memory import require_memory

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

GREY, PALETTE, COLOUR = range(3)  # what a mask file holds
_LOSSY = {"JPEG", "MPO", "JPEG2000"}
_MOST_VALUES = 1024  # of a mask that are counted; more are no classes
_CACHE_FORMAT = 1  # to be raised when the decoders give other values than before


def load_masked_folder(data_dir: Path, *, image_size: int, ignore_value: int | None = None) -> MaskSplits:
    """Pictures and masks of a folder, squeezed to squares of `image_size` pixels; the aspect ratio is not kept.

    Which files belong together and which are for the test: see `find_pairs`. What the values of the masks mean: a
    file classes.csv, classes.txt, classes.json (or another of `TABLE_NAMES`) anywhere in the folder, see
    `read_class_table`; without one the values tell, see `find_classes`. `ignore_value` is not learned nor scored.

    A picture is scaled as a whole (bicubic, antialiased), its mask by nearest neighbour. A mask of the upright size
    of a photograph with an orientation mark is on the upright picture, else on the stored one. In masks,
    transparent pixels count as black. Pixels are cached under the hash of all files.

    Raises DataError, one line with the file and the mend, for what cannot be read so.
    """
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder")
    found = find_pairs(data_dir)
    table, table_note = _find_table(data_dir)
    masks = _decoded(found.train + found.test, image_size)
    classes, numbers = _class_numbers(masks, table, ignore_value)
    pairs = found.train + found.test
    is_test = _with_two_classes(found, numbers)
    train, test = (
        MaskSplit(
            torch.from_numpy(masks.images[rows]), torch.from_numpy(numbers[rows]), [pairs[row].name for row in rows]
        )
        for rows in (np.flatnonzero(~is_test), np.flatnonzero(is_test))
    )
    notes = [*found.notes, *table_note, classes.described()]
    return MaskSplits(train, test, classes.names, classes.values, tuple(notes))


def load_test_masks(
    data_dir: Path,
    class_names: Sequence[str],
    mask_values: Sequence[Value],
    *,
    image_size: int,
    ignore_value: int | None = None,
    whole: bool = False,
) -> tuple[MaskSplit, list[str]]:
    """Pictures and masks of a folder to test a net on that tells apart `class_names`; masks hold places in these.

    data_dir: as `load_masked_folder` takes it, or with a test split alone.
    mask_values: what masks hold for each of the classes where no file of the folder lists its own, unless their
        values say otherwise by themselves.
    whole: take the training pictures too, before the others.

    Returns the split and how the files were understood, a line each. Raises DataError as `load_masked_folder` does,
    and for pixels of a class that is none of `class_names`.
    """
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder")
    found = find_pairs(data_dir, needs_training=False)
    table, table_note = _find_table(data_dir)
    # Where a hash holds out test pictures, their classes count for which these are.
    pairs = found.train + found.test if whole or found.in_line else found.test
    masks = _decoded(pairs, image_size)
    ours = tuple(ListedClass(name, value) for name, value in zip(class_names, mask_values, strict=True))
    try:
        classes, numbers = _class_numbers(masks, table or ours, ignore_value)
    except DataError:
        if table:
            raise
        classes, numbers = _class_numbers(masks, None, ignore_value)
    is_chosen = np.full(len(pairs), True)
    if found.in_line and not whole:
        is_chosen = _with_two_classes(found, numbers)
    rows = np.flatnonzero(is_chosen)
    split = MaskSplit(
        torch.from_numpy(masks.images[rows]),
        torch.from_numpy(_numbers_by_name(numbers[rows], classes.names, class_names, data_dir)),
        [pairs[row].name for row in rows],
    )
    return split, [*found.notes, *table_note, classes.described()]


def _numbers_by_name(
    numbers: np.ndarray, names: Sequence[str], class_names: Sequence[str], data_dir: Path
) -> np.ndarray:
    """Masks of classes `names`, or IGNORE, as places in `class_names`."""
    place = np.full(IGNORE + 1, IGNORE, np.uint8)
    for number in set(np.unique(numbers).tolist()) - {IGNORE}:
        if names[number] not in class_names:
            raise DataError(
                f"{data_dir} has masks of {', '.join(names)}, but the run tells apart {', '.join(class_names)}: "
                "name the classes alike, in a classes.csv with a line NAME,VALUE each"
            )
        place[number] = class_names.index(names[number])
    return place[numbers]


def _with_two_classes(found: SplitPairs, numbers: np.ndarray) -> np.ndarray:
    """(N,) bool of training and test pairs, which of them are for the test.

    Where a hash chose test pictures of one class alone, as it may of few or of small objects, the next one in its
    order that has another joins them.
    """
    rows = {pair.name: row for row, pair in enumerate(found.train + found.test)}
    is_test = np.arange(len(numbers)) >= len(found.train)

    def classes(chosen) -> set[int]:
        return set(np.unique(numbers[chosen]).tolist()) - {IGNORE}

    if len(classes(is_test)) < 2 and len(found.in_line) > 1:
        for group in found.in_line:
            chosen = [rows[pair.name] for pair in group]
            if classes(chosen) - classes(is_test):
                is_test[chosen] = True
                break
    return is_test


def _find_table(data_dir: Path) -> tuple[tuple[ListedClass, ...] | None, list[str]]:
    """The listed classes, and a line that says where. Several files must list the same."""
    tables: dict[Path, tuple[ListedClass, ...]] = {}
    for folder, subfolders, names in os.walk(data_dir, followlinks=False):
        subfolders[:] = sorted(name for name in subfolders if name[0] not in "._")
        for path in (Path(folder, name) for name in sorted(names)):
            if is_table(path):
                tables[path] = read_class_table(path)
    if not tables:
        return None, []
    (first, table), *others = tables.items()
    for path, other in others:
        if other != table:
            raise DataError(f"{first} and {path} list different classes: keep one of them")
    return table, [f"classes listed in {first}"]


# Pixels


class DecodedMasks:
    """Pictures (N, 3, S, S) uint8 and what their mask files hold.

    `codes` (N, S, S) uint32: of a grey pixel its level, of a coloured one 0xRRGGBB, of a palette's 0xIIRRGGBB with
    the index. `kinds` (N,): GREY, PALETTE or COLOUR. `counts` (M, 3) int64: row, code and pixels, at full size.
    """

    def __init__(self, paths: Sequence[Path], images, codes, kinds, lossy, counts):
        self.paths, self.images, self.codes, self.kinds, self.lossy = paths, images, codes, kinds, bool(lossy.any())
        self.counts = [tuple(map(int, row)) for row in counts]


def _decoded(pairs: Sequence[Pair], image_size: int) -> DecodedMasks:
    from PIL import __version__ as pillow_version

    of_size = f"{len(pairs):,} pictures of {image_size}x{image_size} pixels and their masks"
    require_memory(8 * len(pairs) * image_size**2, of_size, "lower --image_size")

    def decode() -> dict[str, np.ndarray]:
        n = len(pairs)
        images = np.empty((n, 3, image_size, image_size), np.uint8)
        codes = np.empty((n, image_size, image_size), np.uint32)
        kinds, lossy = np.empty(n, np.uint8), np.empty(n, bool)
        counts: list[np.ndarray] = [np.empty((0, 3), np.int64)] * n

        def fill(row: int) -> None:
            images[row], codes[row], kinds[row], lossy[row], values = decode_pair(pairs[row], image_size)
            counts[row] = np.column_stack([np.full(len(values), row), values])

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(fill, range(n)):  # of several errors, the first row's is raised
                pass
        return {"images": images, "codes": codes, "kinds": kinds, "lossy": lossy, "counts": np.concatenate(counts)}

    settings = {"masked_folder": _CACHE_FORMAT, "image_size": image_size, "pillow": pillow_version}
    contents = (read_bytes(path) for pair in pairs for path in (pair.picture, pair.mask))
    names = ("images", "codes", "kinds", "lossy", "counts")
    arrays = cached_arrays(content_key(settings, contents), names, decode)
    return DecodedMasks([pair.mask for pair in pairs], **{name: arrays[name] for name in names})


def decode_pair(pair: Pair, image_size: int) -> tuple[np.ndarray, np.ndarray, int, bool, np.ndarray]:
    """(picture (3, S, S) uint8, codes (S, S) uint32, kind, whether lossy, (M, 2) int64 of code and pixels).

    Raises DataError, with the file, for one that cannot be decoded and for a mask of another size than its picture.
    """
    from PIL import Image

    stored, mask = open_picture(pair.picture), open_picture(pair.mask)
    lossy = mask.format in _LOSSY
    with decoding(pair.picture):
        picture = upright(stored)
    with decoding(pair.mask):
        mask = upright(mask)
    if stored.size == mask.size != picture.size:
        picture = stored  # the mask is drawn on the pixels as they are stored
    if picture.size != mask.size:
        raise DataError(
            f"{pair.mask} has {mask.width}x{mask.height} pixels, but {pair.picture} has "
            f"{picture.width}x{picture.height}: give the mask the size of its picture"
        )
    with decoding(pair.picture):
        pixels = squeezed(picture, image_size)
    with decoding(pair.mask):
        codes, kind = _codes(mask)
    values, counts = _counted(codes, kind)
    small = Image.fromarray(codes.view(np.int32)).resize((image_size, image_size), Image.Resampling.NEAREST)
    small_codes = np.asarray(small).view(np.uint32)
    return pixels, small_codes, kind, lossy, np.column_stack([values, counts]).astype(np.int64)


def _counted(codes: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes that occur, (M,) uint32, and how often. Of more than `_MOST_VALUES` the most frequent."""
    if kind == COLOUR:
        values, counts = np.unique(codes, return_counts=True)
    else:  # sorting would take a second for each large photograph
        levels = codes if kind == GREY else codes >> 24
        counts = np.bincount(levels.ravel())
        code_of = np.zeros(len(counts), np.uint32)
        code_of[levels] = codes
        present = np.flatnonzero(counts)
        values, counts = code_of[present], counts[present]
    if len(values) > _MOST_VALUES:
        often = np.argsort(counts, kind="stable")[-_MOST_VALUES:]
        values, counts = values[often], counts[often]
    return values, counts


def _codes(mask: "Picture") -> tuple[np.ndarray, int]:
    """(H, W) uint32 and the kind of them: see `DecodedMasks`."""
    if mask.mode == "P" and not mask.has_transparency_data:
        rgb = _packed(np.asarray(mask.convert("RGB")))
        return np.asarray(mask).astype(np.uint32) << 24 | rgb, PALETTE
    if mask.mode == "F":
        raise ValueError("a mask in floating point")
    if mask.mode.startswith("I"):
        return _from_16_bit(np.asarray(mask)), GREY
    if mask.has_transparency_data:
        return _from_transparent(np.asarray(mask.convert("RGBA")))
    if mask.mode in ("1", "L"):
        return np.asarray(mask.convert("L")).astype(np.uint32), GREY
    return _from_colours(np.asarray(mask.convert("RGB")))


def _packed(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _from_colours(rgb: np.ndarray) -> tuple[np.ndarray, int]:
    if (rgb == rgb[..., :1]).all():
        return rgb[..., 0].astype(np.uint32), GREY
    return _packed(rgb), COLOUR


def _from_transparent(rgba: np.ndarray) -> tuple[np.ndarray, int]:
    opaque = rgba[..., 3] >= 128
    rgb = rgba[..., :3]
    if not opaque.all() and (rgb[opaque] == 0).all():  # the mask is in the transparency alone
        return np.where(opaque, 255, 0).astype(np.uint32), GREY
    return _from_colours(np.where(opaque[..., None], rgb, 0))


def _from_16_bit(values: np.ndarray) -> np.ndarray:
    """Class numbers up to 255 as they are; levels up to 65,535 as those of 8 bits."""
    if values.max(initial=0) > 255:
        if (values % 257).any() or values.max() > 65535:
            raise ValueError("16-bit values above 255 that are no levels of 8 bits: save the mask with 8 bits")
        values = values // 257
    return values.astype(np.uint32)


def mask_picture(numbers: np.ndarray, values: Sequence[Value], colours: Sequence[Colour]) -> "Picture":
    """Class numbers (H, W) uint8 as an image that `load_masked_folder` reads: class k is drawn as `values[k]`.

    Colours in RGB, grey levels in grey; class numbers in a palette, in which class k shows as `colours[k]`.
    """
    from PIL import Image

    drawn = np.array(values, np.uint8)[numbers]
    image = Image.fromarray(drawn)
    levels = [value for value in values if isinstance(value, int)]
    if not levels or not are_class_numbers(sorted(levels)):
        return image
    image = Image.frombytes("P", image.size, drawn.tobytes())
    palette = np.zeros((256, 3), np.uint8)
    palette[levels] = colours
    image.putpalette(palette.flatten().tolist())
    return image


# From codes to class numbers


def _class_numbers(
    masks: DecodedMasks, table: Sequence[ListedClass] | None, ignore_value: int | None
) -> tuple[MaskClasses, np.ndarray]:
    """The classes, and the masks (N, S, S) uint8 of their numbers, or IGNORE."""
    errors: list[DataError] = []
    for by_index in _readings_of_palettes(masks, table):
        in_colour = _is_in_colour(masks, by_index)
        found = FoundValues(lossy=masks.lossy)
        for row, code, count in masks.counts:
            value = _value(code, masks.kinds[row], by_index, in_colour)
            of_file = found.pixels[value]
            of_file[masks.paths[row]] = of_file.get(masks.paths[row], 0) + count
        try:
            classes = find_classes(found, table, ignore_value)
            return classes, _mapped(masks, classes, by_index, in_colour)
        except DataError as error:
            errors.append(error)
    raise errors[0]


def _readings_of_palettes(masks: DecodedMasks, table: Sequence[ListedClass] | None) -> list[bool]:
    """Whether palettes are read by their indices (True) or by what they show, the likelier first.

    Indices need one palette for all files; where it shows colours, they are class numbers. A palette of greys shows
    the values.
    """
    entries = {code for row, code, _ in masks.counts if masks.kinds[row] == PALETTE}
    indices = {code >> 24 for code in entries}
    if len(indices) < len(entries):  # one index has several colours
        return [False]
    in_greys = all(len({code >> 16 & 255, code >> 8 & 255, code & 255}) == 1 for code in entries)
    has_colours = any(isinstance(listed.value, tuple) for listed in table or ())
    return [False, True] if in_greys or has_colours else [True, False]


def _is_in_colour(masks: DecodedMasks, by_index: bool) -> bool:
    if (masks.kinds == COLOUR).any():
        return True
    shown = (code for row, code, _ in masks.counts if masks.kinds[row] == PALETTE)
    return not by_index and any(len({code >> 16 & 255, code >> 8 & 255, code & 255}) > 1 for code in shown)


def _value(code: int, kind: int, by_index: bool, in_colour: bool) -> Value:
    if kind == GREY or (kind == PALETTE and by_index):
        level = code if kind == GREY else code >> 24
        return (level,) * 3 if in_colour else level
    colour = code >> 16 & 255, code >> 8 & 255, code & 255
    return colour if in_colour else colour[0]


def _mapped(masks: DecodedMasks, classes: MaskClasses, by_index: bool, in_colour: bool) -> np.ndarray:
    numbers = np.empty(masks.codes.shape, np.uint8)
    for row, codes in enumerate(masks.codes):
        values, places = np.unique(codes, return_inverse=True)
        of_values = [classes.index(_value(int(code), masks.kinds[row], by_index, in_colour)) for code in values]
        numbers[row] = np.array(of_values, np.uint8)[places.reshape(codes.shape)]
    return numbers
