"""Which files of a folder are pictures, which are their masks, and which pairs are for training or for the test.

A path is read word by word. A folder may say what it holds (images, masks, or one of the other `KINDS`), for which
split (train, test, val), or both at once (train_masks); what is left of the path, and the file's name without such
words, tells which mask belongs to which picture:

    images/a.jpg              masks/a.png
    train/imgs/a.jpg          train/labels/a_mask.gif          test/imgs/b.jpg   test/labels/b_mask.gif
    images/training/a.jpg     annotations/training/a.png       ..
    train/a.png               train_labels/a_L.png             ..
    a.jpg                     a_mask.png                       in one folder
    a.jpg                     a.png                            likewise
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path, PurePosixPath

from data.errors import DataError
from data.images.rows import read_bytes

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
LOSSLESS = {".png", ".gif", ".bmp", ".tif", ".tiff", ".pgm"}  # of two files a.jpg and a.png, this is the mask
KINDS = {
    "picture": "images image imgs img pictures picture photos photo jpegimages pngimages leftimg8bit inputs input "
    "frames rgb originals original",
    "mask": "masks mask labels label annotations annotation annots annot segmentations segmentation segs seg "
    "segmentationclass pngmasks gt gtfine groundtruth groundtruths targets target trimaps lbl lbls",
}
SPLITS = {
    "train": "train training trn",
    "test": "test testing tst",
    "valid": "val valid validation dev",
}
LAYOUTS = (
    "images/NAME.jpg with masks/NAME.png or masks/NAME_mask.png, or both kinds in one folder as NAME.jpg with "
    "NAME_mask.png; also below train/ and test/, or with the lists train.txt and test.txt"
)
_KIND_OF = {word: kind for kind, words in KINDS.items() for word in words.split()}
_SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words.split()}
_MASK_WORDS = (
    "masks?|labels?|segmentation|seg|gt|groundtruth|annotation|lbl|target|matte|L|gtFine|labelIds|labelTrainIds"
)
_PICTURE_WORDS = "images?|img|sat|rgb|input|original|leftImg8bit|picture|photo"
_NO_MASK = re.compile(r"[_\-. ](color|colors|instanceIds|instances)$")  # drawn beside a mask for the eye
_LIST_FOLDERS = ("", "ImageSets/Segmentation", "ImageSets", "splits", "split", "lists", "annotations")
_TEST_FRACTION = 0.1  # of pictures that come without a split
_FEWEST_TEST = 2  # of them, where there are three pictures or more


@dataclass(frozen=True)
class Pair:
    """A picture and its mask. `name` is the picture's path below the data's folder, without its suffix."""

    name: str
    picture: Path
    mask: Path


@dataclass(frozen=True)
class SplitPairs:
    train: list[Pair]
    test: list[Pair]
    notes: list[str]  # what a user should know of how they were found, a line each
    in_line: tuple[tuple[Pair, ...], ...] = ()  # of train: what is held out next, where the hash decides


@dataclass(frozen=True)
class _File:
    """An image file, and what its path says."""

    path: Path
    relative: PurePosixPath
    kind: str | None  # a key of KINDS
    split: str | None  # a key of SPLITS
    folders: tuple[str, ...]  # those that say neither

    @property
    def stem(self) -> str:
        return self.relative.stem


def find_pairs(data_dir: Path, *, needs_training: bool = True) -> SplitPairs:
    """The pairs of pictures and masks below `data_dir`, those for training and those for the test.

    The split is that of the lists train.txt and test.txt (or val.txt) where there are any: a picture's name or
    path a line. Else that of folders named train and test (or val). Else about a tenth of the pictures, two at
    least, are held out by the hash of their files, so that equal files fall on the same side.

    Hidden files, and files whose suffix is none of `SUFFIXES`, are not looked at. Raises DataError where there is
    no pair; for a picture without a mask and a mask without a picture, unless lists leave them out; for two files
    that claim one name; for a list that names what is not there; and for an empty split, but for that of the
    training unless it `needs_training`.
    """
    files = _without_overlays([_described(path, data_dir) for path in _image_files(data_dir)])
    pictures, masks = _kinds(files)
    if not pictures or not masks:
        raise DataError(f"{data_dir} holds no pictures with masks: give a folder with {LAYOUTS}")
    matched, without_mask, without_picture = _match(pictures, masks)
    pairs = {
        picture.relative: Pair(str(picture.relative.with_suffix("")), picture.path, mask.path)
        for picture, mask in matched
    }
    if not pairs:
        raise DataError(
            f"{data_dir}: no picture has a mask of its name, such as {without_mask[0].relative} and "
            f"{without_picture[0].relative}: name a mask as its picture, or NAME_mask"
        )
    lists = _find_lists(data_dir)
    if lists:
        return _split_by_lists(lists, pairs, without_mask, needs_training)
    splits = {split for split in (picture.split for picture in pictures) if split}
    unlabelled = {s for s in splits if not any(picture.split == s for picture, _ in matched)}
    without_mask = [picture for picture in without_mask if picture.split not in unlabelled]
    _refuse_lonely(data_dir, without_mask, without_picture, len(pictures))
    split_of = {picture.relative: picture.split or mask.split for picture, mask in matched}
    notes = [f"the pictures of {split} have no masks and are left out" for split in sorted(unlabelled)]
    return _split_by_folders(data_dir, pairs, split_of, notes, needs_training)


# Files, and what their paths say


def _image_files(data_dir: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(data_dir, followlinks=True):
        if os.path.realpath(folder) in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__MACOSX")))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return found


def _described(path: Path, data_dir: Path) -> _File:
    relative = PurePosixPath(path.relative_to(data_dir).as_posix())
    kind, split, folders = None, None, []
    for folder in relative.parts[:-1]:
        its_kind, its_split = words_of_folder(folder)
        kind, split = its_kind or kind, its_split or split  # the innermost decides
        if not (its_kind or its_split):
            folders.append(folder)
    return _File(path, relative, kind, split, tuple(folders))


def words_of_folder(name: str) -> tuple[str | None, str | None]:
    """What the name of a folder says: the kind of its files and their split, None for what it does not say."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    together = "".join(words)
    if together in _KIND_OF:
        words = [together]  # ground_truth
    for split_word in _SPLIT_OF:  # trainannot
        if together.startswith(split_word) and together[len(split_word) :] in _KIND_OF:
            words = [split_word, together[len(split_word) :]]
    kinds = {_KIND_OF[word] for word in words if word in _KIND_OF}
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    if not kinds and len(words) > 1:  # a name of several words that speaks of no kind: only a name
        splits = set()
    kind = "mask" if "mask" in kinds else next(iter(kinds), None)  # image_masks
    return kind, splits.pop() if len(splits) == 1 else None


def _without_words(stem: str, words: str) -> str:
    """`stem` without the words that say what the file is, before or after its name."""
    stem = re.sub(rf"(?<=.)([_\-. ]({words}))+$", "", stem, flags=re.IGNORECASE)
    return re.sub(rf"^({words})([_\-. ]|(?=\d))(?=.)", "", stem, flags=re.IGNORECASE)


def _mask_name(file: _File) -> str:
    return _without_words(file.stem, _MASK_WORDS).casefold()


def _picture_name(file: _File) -> str:
    return _without_words(file.stem, _PICTURE_WORDS).casefold()


def _kinds(files: Sequence[_File]) -> tuple[list[_File], list[_File]]:
    """The pictures and the masks among the files, by their folders or else by their names."""
    masks = [file for file in files if file.kind == "mask"]
    pictures = [file for file in files if file.kind == "picture"]
    if masks:
        pictures = pictures or [file for file in files if file.kind is None]
    else:
        pictures, masks = _kinds_by_name(pictures or files)
    return pictures, _without_drawings(masks, pictures)


def _without_overlays(files: Sequence[_File]) -> list[_File]:
    """Without NAME_overlay.png where there is a NAME: what tools draw for the eye."""
    stems = {file.stem for file in files}
    return [f for f in files if not (f.stem.endswith("_overlay") and f.stem.removesuffix("_overlay") in stems)]


def _kinds_by_name(files: Sequence[_File]) -> tuple[list[_File], list[_File]]:
    """Of files in one folder the masks are NAME_mask beside NAME, or NAME.png beside NAME.jpg."""
    beside: dict[tuple, list[_File]] = defaultdict(list)
    for file in files:
        beside[file.relative.parent, _picture_name(file)].append(file)
    masks: set[PurePosixPath] = set()
    for file in files:
        others = beside.get((file.relative.parent, _mask_name(file)), [])
        if _mask_name(file) != file.stem.casefold() and any(other is not file for other in others):
            masks.add(file.relative)
    for same_name in beside.values():
        lossless = [file for file in same_name if file.relative.suffix.lower() in LOSSLESS]
        if len(same_name) == 2 and len(lossless) == 1 and same_name[0].stem == same_name[1].stem:
            masks.add(lossless[0].relative)
    return [f for f in files if f.relative not in masks], [f for f in files if f.relative in masks]


def _without_drawings(masks: Sequence[_File], pictures: Sequence[_File]) -> list[_File]:
    """Without the coloured copies and instances that Cityscapes has beside its masks, and one kind of its ids."""
    names = {_picture_name(picture) for picture in pictures} | {p.stem.casefold() for p in pictures}

    def is_drawing(file: _File) -> bool:
        plain = _NO_MASK.sub("", file.stem)
        return plain != file.stem and _without_words(plain, _MASK_WORDS).casefold() in names

    masks = [file for file in masks if file.stem.casefold() in names or not is_drawing(file)]
    trained = {
        file.path.with_name(file.path.name.replace("labelTrainIds", "labelIds"))
        for file in masks
        if "labelTrainIds" in file.path.name
    }
    return [file for file in masks if file.path not in trained]


# Which mask belongs to which picture


def _match(
    pictures: Sequence[_File], masks: Sequence[_File]
) -> tuple[list[tuple[_File, _File]], list[_File], list[_File]]:
    """(picture, mask) pairs, pictures without a mask and masks without a picture, each in the order of paths."""
    found: dict[PurePosixPath, _File] = {}
    left_pictures, left_masks = list(pictures), list(masks)
    names = [  # of a picture and of a mask, from the strictest to the loosest
        (lambda f: (f.folders, f.stem), lambda f: (f.folders, f.stem)),
        (lambda f: (f.folders, f.stem.casefold()), lambda f: (f.folders, _mask_name(f))),
        (lambda f: (f.folders, _picture_name(f)), lambda f: (f.folders, _mask_name(f))),
        (_picture_name, _mask_name),
    ]
    for with_split in (True, False):
        for of_picture, of_mask in names:
            by_name: dict[object, list[_File]] = defaultdict(list)
            for mask in left_masks:
                by_name[of_mask(mask), mask.split if with_split else None].append(mask)
            taken: dict[object, _File] = {}
            for picture in left_pictures:
                key = of_picture(picture), picture.split if with_split else None
                candidates = by_name.get(key, [])
                if candidates:
                    _refuse_two(candidates, "are both the mask of", picture.relative)
                    if key in taken:
                        _refuse_two([taken[key], picture], "both belong to the mask", candidates[0].relative)
                    taken[key], found[picture.relative] = picture, candidates[0]
            matched = {mask.relative for mask in found.values()}
            left_pictures = [picture for picture in left_pictures if picture.relative not in found]
            left_masks = [mask for mask in left_masks if mask.relative not in matched]
    pairs = [(picture, found[picture.relative]) for picture in pictures if picture.relative in found]
    return pairs, left_pictures, left_masks


def _refuse_two(files: Sequence[_File], what: str, other: PurePosixPath) -> None:
    if len(files) > 1:
        first, second = files[:2]
        raise DataError(f"{first.path} and {second.path} {what} {other}: take one of them away, or rename it")


def _refuse_lonely(data_dir: Path, pictures: Sequence[_File], masks: Sequence[_File], n_pictures: int) -> None:
    if pictures:
        more = f" ({len(pictures)} of {n_pictures} pictures have none)" if len(pictures) > 1 else ""
        name = pictures[0].stem
        raise DataError(
            f"{pictures[0].path} has no mask{more}: add {name}.png or {name}_mask.png to the masks, take the "
            f"picture away, or list the pictures to use in {data_dir}/train.txt and test.txt"
        )
    if masks:
        more = f" ({len(masks)} masks have none)" if len(masks) > 1 else ""
        raise DataError(
            f"{masks[0].path} has no picture{more}: add the picture, take the mask away, or list the pictures "
            f"to use in {data_dir}/train.txt and test.txt"
        )


# Splits


def _find_lists(data_dir: Path) -> dict[str, Path]:
    """The list files by split: "train", "test", "valid", or some of them."""
    roots = [data_dir, *sorted(path for path in data_dir.iterdir() if path.is_dir() and path.name[0] not in "._")]
    for folder in (root / name for root in roots for name in _LIST_FOLDERS):
        lists = {}
        for word, split in ({"trainval": "train"} | _SPLIT_OF).items():
            if (folder / f"{word}.txt").is_file():
                lists[split] = folder / f"{word}.txt"
        if lists:
            return lists
    return {}


def _split_by_lists(
    lists: Mapping[str, Path],
    pairs: Mapping[PurePosixPath, Pair],
    without_mask: Sequence[_File],
    needs_training: bool,
) -> SplitPairs:
    """By train.txt and the first held-out list; with one list alone, the other split is the rest of the pairs."""
    listed = _by_listed_name((pair, path) for path, pair in pairs.items())
    bare = _by_listed_name((picture, picture.relative) for picture in without_mask)
    held_out = next((split for split in ("test", "valid") if split in lists), None)
    chosen: dict[str, list[Pair]] = {}
    places: dict[str, str] = {}
    for split in filter(None, ("train" if "train" in lists else None, held_out)):
        chosen[split] = _read_list(lists[split], listed, bare, places)
    rest = [pair for pair in pairs.values() if pair.name not in places]
    notes = [f"split by {' and '.join(str(lists[split]) for split in chosen)}"]
    if held_out is None and not rest:
        train, test, in_line = _held_out_by_hash(chosen["train"])
        notes.append(f"{lists['train']} lists all pictures, so some are held out for the test, by their hash")
        return SplitPairs(train, test, notes, in_line)
    if held_out and "valid" in lists and held_out != "valid":
        notes.append(f"{lists['valid']} is not used")
    train, test = chosen.get("train", rest), chosen[held_out] if held_out else rest
    for split, found in (("training", train), ("test", test)):
        if not found and (needs_training or split == "test"):
            raise DataError(
                f"{' and '.join(str(path) for path in lists.values())} leave no picture for the {split} split: "
                "list some for it"
            )
    return SplitPairs(train, test, notes)


def _by_listed_name(items: Iterable[tuple]) -> dict[str, list]:
    """What each name in a list can mean: the path or the end of it, with or without its suffix."""
    named: dict[str, list] = defaultdict(list)
    for item, relative in items:
        for parts in (relative.parts, relative.with_suffix("").parts):
            for i in range(len(parts)):
                named["/".join(parts[i:])].append(item)
    return named


def _read_list(
    path: Path, pairs: Mapping[str, list[Pair]], bare: Mapping[str, list[_File]], places: dict[str, str]
) -> list[Pair]:
    """The pairs that a list names, in its order. `places` keeps where each was listed, over several lists."""
    found: list[Pair] = []
    for number, line in enumerate(read_bytes(path).decode("utf-8-sig", "replace").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pair = _listed(line.strip(), pairs, f"{path} line {number}")
        if pair is None:
            lonely = _listed(line.strip(), bare, f"{path} line {number}")
            why = f"{lonely.path} has no mask: add it" if lonely else "no picture is called that: mend the name"
            raise DataError(f"{path} line {number}, {line.strip()}: {why}, or take the line away")
        if pair.name in places:
            raise DataError(
                f"{path} line {number}: {pair.name} stands in {places[pair.name]} too: remove one of the two lines"
            )
        places[pair.name] = f"{path.name} line {number}"
        found.append(pair)
    return found


def _listed(line: str, named: Mapping[str, list], where: str):
    """What a line names: as a whole, else by its first field, by the whole path or its last part."""
    for text in (line, re.split(r"[\s,;]", line)[0]):
        path = PurePosixPath(text.replace("\\", "/").lstrip("./"))
        for name in (str(path), *("/".join(path.parts[i:]) for i in range(1, len(path.parts)))):
            suffix = PurePosixPath(name).suffix
            for form in (name, name.removesuffix(suffix) if suffix.lower() in SUFFIXES else name):
                items = named.get(form, [])
                if len(items) > 1:
                    raise DataError(
                        f"{where}, {line}: several pictures are called that: write the path from the top"
                    )
                if items:
                    return items[0]
    return None


def _split_by_folders(
    data_dir: Path,
    pairs: Mapping[PurePosixPath, Pair],
    split_of: Mapping[PurePosixPath, str | None],
    notes: list[str],
    needs_training: bool,
) -> SplitPairs:
    by_split: dict[str | None, list[Pair]] = defaultdict(list)
    for path, pair in pairs.items():
        by_split[split_of[path]].append(pair)
    held_out = next((split for split in ("test", "valid") if by_split[split]), None)
    if by_split[None] and by_split["train"]:
        raise DataError(
            f"{by_split[None][0].picture} lies in neither split, others do in train: move it into one of them"
        )
    train = by_split["train"] or by_split[None]
    if not train and needs_training:
        raise DataError(f"{data_dir} has pictures of the {held_out} split alone: add train/, or rename the folder")
    if held_out == "test" and by_split["valid"]:
        notes = [*notes, f"the {len(by_split['valid'])} pictures of the validation folder are not used"]
    if held_out:
        return SplitPairs(train, by_split[held_out], notes)
    if len(train) < 2:
        raise DataError(f"{data_dir} has one picture with a mask: give two at least, one of them is for the test")
    train, test, in_line = _held_out_by_hash(train)
    notes = [*notes, "no split is given: the test pictures are held out by the hash of their files"]
    return SplitPairs(train, test, notes, in_line)


def _held_out_by_hash(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair], tuple[tuple[Pair, ...], ...]]:
    """Training pairs, test pairs, and the training pairs in the order in which they would be held out.

    Pairs of equal pictures stay together.
    """
    positions = {pair.name: _position(pair.picture) for pair in pairs}
    enough = min(_FEWEST_TEST, len(pairs) - 1)
    limit = max(_TEST_FRACTION, sorted(positions.values())[enough - 1])
    test = [pair for pair in pairs if positions[pair.name] <= limit]
    train = [pair for pair in pairs if positions[pair.name] > limit]
    if not train:
        raise DataError(f"{pairs[0].picture} and the other {len(pairs) - 1} pictures are all alike: give others")
    ordered = sorted(train, key=lambda pair: positions[pair.name])
    in_line = (tuple(group) for _, group in groupby(ordered, key=lambda pair: positions[pair.name]))
    return train, test, tuple(in_line)


def _position(path: Path) -> float:
    """Uniform in [0, 1), and the same for the same file."""
    return int.from_bytes(blake2b(read_bytes(path), digest_size=8).digest(), "big") / 2**64
