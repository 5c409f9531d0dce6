"""What the values of masks mean: from a file that lists the classes, or from the values themselves.

A mask value is a number (grey, or the index in a palette) or a colour (red, green, blue), each 0 to 255.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from data.errors import DataError
from data.images.masked import IGNORE
from data.images.rows import read_bytes

Colour = tuple[int, int, int]
Value = int | Colour

TABLE_NAMES = {
    "classes",
    "_classes",
    "class_names",
    "classnames",
    "class_dict",
    "labels",
    "labelmap",
    "label_map",
    "label_colors",
    "label_colours",
    "label_names",
    "colormap",
    "codes",
    "names",
}
TABLE_SUFFIXES = {".txt", ".csv", ".json"}
IGNORED_NAMES = {"ignore", "ignored", "void"}  # a class of this name is neither learned nor scored
MEND = "list the classes in classes.csv, a line NAME,VALUE or NAME,RED,GREEN,BLUE each"
_MAX_NUMBERS = 64  # class numbers, grey levels and colours that are taken for classes without a list of them
_MAX_GREYS = 32
_MAX_COLOURS = 32
_SOFT = 32  # a level this near to black or white is taken for it, in lossy masks
_STRAY = 1e-4  # share of all pixels below which a colour is taken for a slip


@dataclass(frozen=True)
class ListedClass:
    """A class of a table; `value` None: its place in the table, from 0."""

    name: str
    value: Value | None = None


@dataclass(frozen=True)
class MaskClasses:
    """Class k is called `names[k]` and is drawn as `values[k]` in the masks that were read."""

    names: tuple[str, ...]
    values: tuple[Value, ...]
    ignored: frozenset[Value] = frozenset()
    nearest: bool = False  # other values count as the nearest of these, as lossy compression makes them

    def index(self, value: Value) -> int:
        """The class number of a mask value, or IGNORE. Raises KeyError for another value, unless `nearest`."""
        if value in self.ignored:
            return IGNORE
        if value in self.values:
            return self.values.index(value)
        if not self.nearest:
            raise KeyError(value)
        return min(range(len(self.values)), key=lambda k: _distance(self.values[k], value))

    def described(self) -> str:
        classes = [(name, shown(value)) for name, value in zip(self.names, self.values, strict=True)]
        parts = [name if name == value else f"{name} ({value})" for name, value in classes]
        ignored = f"; ignored: {', '.join(map(shown, sorted(self.ignored, key=str)))}" if self.ignored else ""
        nearest = "; other values count as the nearest of these" if self.nearest else ""
        return f"{len(parts)} classes (and their values in the masks): {', '.join(parts)}{ignored}{nearest}"


@dataclass
class FoundValues:
    """The values of all masks: of each, how many pixels have it in which file."""

    pixels: dict[Value, dict[Path, int]] = field(default_factory=lambda: defaultdict(dict))
    lossy: bool = False  # one of the files is a JPEG

    def count(self, values: Iterable[Value]) -> int:
        return sum(sum(self.pixels[value].values()) for value in values)

    def first_file(self, value: Value) -> Path:
        return next(iter(self.pixels[value]))

    def rarest(self, values: Iterable[Value]) -> Value:
        return min(values, key=lambda value: (len(self.pixels[value]), self.count([value])))


def shown(value: Value) -> str:
    return str(value) if isinstance(value, int) else "#" + bytes(value).hex()


def _distance(a: Value, b: Value) -> int:
    return sum((x - y) ** 2 for x, y in zip(_rgb(a), _rgb(b), strict=True))


def _rgb(value: Value) -> Colour:
    return value if isinstance(value, tuple) else (value,) * 3


# Tables


def is_table(path: Path) -> bool:
    return path.stem.lower() in TABLE_NAMES and path.suffix.lower() in TABLE_SUFFIXES


def read_class_table(path: Path) -> tuple[ListedClass, ...]:
    """The classes of a .txt, .csv or .json file, in its order.

    .txt: a line each, `NAME`, `NAME,VALUE`, `VALUE NAME`, `NAME,R,G,B`, `R G B NAME` or CVAT's `NAME:R,G,B::`;
    .csv: likewise, or with a header that calls the columns name, value, r, g, b; .json: a list of names or of
    objects, or an object of names and values or of values and names. Colours may be "#rrggbb".

    Raises DataError for a table that cannot be read so, has fewer than one class, or one name or value twice.
    """
    text = read_bytes(path).decode("utf-8-sig", "replace")
    try:
        rows = {".csv": _csv_classes, ".json": _json_classes}.get(path.suffix.lower(), _text_classes)(text)
        classes = tuple(ListedClass(name.strip(), _checked(value)) for name, value in rows)
    except (ValueError, LookupError, TypeError, StopIteration, csv.Error) as error:
        raise DataError(f"{path} is no list of classes ({' '.join(str(error).split())}): {MEND}") from error
    if not classes:
        raise DataError(f"{path} lists no class: {MEND}")
    with_values = [c for c in classes if c.value is not None]
    if with_values and len(with_values) < len(classes):
        raise DataError(f"{path} gives a value for some classes only: give one for each or for none")
    if len({isinstance(c.value, tuple) for c in classes}) > 1:
        raise DataError(f"{path} mixes numbers and colours: give all classes the one or the other")
    columns: dict[str, list] = {"name": [c.name for c in classes], "value": [c.value for c in with_values]}
    for what, items in columns.items():
        for item in items:
            if items.count(item) > 1:
                raise DataError(f"{path} has the {what} {item} twice: give each class its own")
    return classes


def write_class_table(path: Path, names: Sequence[str], values: Sequence[Value]) -> None:
    """Write a table that `read_class_table` reads: classes.csv with a header.

    A table that is there already stays where it lists the same; DataError where it lists something else.
    """
    classes = tuple(ListedClass(name, value) for name, value in zip(names, values, strict=True))
    if path.exists():
        if read_class_table(path) != classes:
            raise DataError(f"{path} lists other classes than the masks will have: choose another folder for them")
        return
    in_colour = isinstance(values[0], tuple)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", *(("r", "g", "b") if in_colour else ("value",))])
        rows.writerows([c.name, *(c.value if isinstance(c.value, tuple) else (c.value,))] for c in classes)


def _checked(value: Value | None) -> Value | None:
    for part in value if isinstance(value, tuple) else (value,):
        if part is not None and not 0 <= part <= 255:
            raise ValueError(f"{part} is no mask value, which is 0 to 255")
    return value


def _value_of(numbers: Sequence[int]) -> Value:
    if len(numbers) not in (1, 3):
        raise ValueError(f"{len(numbers)} numbers are neither a value nor red, green and blue")
    if len(numbers) == 1:
        return numbers[0]
    red, green, blue = numbers
    return red, green, blue


def _hex_colour(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text.strip().lstrip("#"))[:3]
    return red, green, blue


def _text_classes(text: str) -> list[tuple[str, Value | None]]:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if all(line.isdigit() for line in lines):
        return [(line, None) for line in lines]
    return [_text_class(line) for line in lines]


def _text_class(line: str) -> tuple[str, Value | None]:
    if match := re.fullmatch(r"((?:\d+[\s,;:=]+){1,3})(\D.*)", line):
        return match[2], _value_of([int(n) for n in re.findall(r"\d+", match[1])])
    if match := re.fullmatch(r"(.*?)\s*[,;:=\t]\s*#([0-9a-fA-F]{6})", line):
        return match[1], _hex_colour(match[2])
    colour = re.fullmatch(r"(.*?)[\s,;:=]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)[:\s]*", line)
    if colour:
        return colour[1], _value_of([int(colour[i]) for i in (2, 3, 4)])
    if match := re.fullmatch(r"(.*?)\s*[,;:=\t]\s*(\d+)", line):
        return match[1], int(match[2])
    return line.rstrip(":,; "), None


def _csv_classes(text: str) -> list[tuple[str, Value | None]]:
    delimiter = max(",;\t", key=text.count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter)]
    rows = [row for row in rows if any(row) and not row[0].startswith("##")]
    header = [cell.lower() for cell in rows[0]] if rows else []
    columns = {
        "name": ("name", "class", "class_name", "classname", "label", "label_name"),
        "value": ("value", "pixel value", "pixel_value", "id", "class_id", "label_id", "index", "number"),
        "colour": ("color", "colour", "hex", "rgb"),
        **{c: (c, name) for c, name in (("r", "red"), ("g", "green"), ("b", "blue"))},
    }
    place = {key: next((header.index(n) for n in names if n in header), None) for key, names in columns.items()}
    if place["name"] is None:  # no header
        return [_text_class(",".join(cell for cell in row if cell)) for row in rows]
    classes: list[tuple[str, Value | None]] = []
    for row in rows[1:]:
        value: Value | None = None
        if place["r"] is not None and place["g"] is not None and place["b"] is not None:
            value = int(row[place["r"]]), int(row[place["g"]]), int(row[place["b"]])
        elif place["value"] is not None:
            value = int(row[place["value"]])
        elif place["colour"] is not None:
            value = _json_value(row[place["colour"]])
        classes.append((row[place["name"]], value))
    return classes


def _json_value(value) -> Value:
    if isinstance(value, str) and value.strip().startswith("#"):
        return _hex_colour(value)
    if isinstance(value, str):
        return _value_of([int(n) for n in re.findall(r"\d+", value)])
    return _value_of([int(n) for n in (value if isinstance(value, list) else [value])])


def _json_classes(text: str) -> list[tuple[str, Value | None]]:
    found = json.loads(text)
    while isinstance(found, dict):
        inner = next(
            (
                found[key]
                for key in ("classes", "labels", "categories", "items")
                if isinstance(found.get(key), list | dict)
            ),
            None,
        )
        if inner is None:
            break
        found = inner
    if isinstance(found, dict):
        if all(isinstance(value, str) and not value.startswith("#") for value in found.values()):
            return [(name, int(value)) for value, name in found.items()]
        return [(name, _json_value(value)) for name, value in found.items()]
    return [_json_class(item) for item in found]


def _json_class(item) -> tuple[str, Value | None]:
    if isinstance(item, str):
        return item, None
    name = next(item[key] for key in ("name", "title", "label", "class", "readable") if key in item)
    value = next((item[key] for key in ("color", "colour", "rgb", "value", "id", "index") if key in item), None)
    return name, None if value is None else _json_value(value)


# From values to classes


def find_classes(found: FoundValues, table: Sequence[ListedClass] | None, ignore_value: int | None) -> MaskClasses:
    """The classes of masks that hold the values `found`; all of them numbers, or all of them colours.

    table: the classes as they are listed; None: they are told from the values. Two values are background (black,
        the smaller number, or what most pixels are) and foreground. Of more, small numbers are class numbers, with
        255 for pixels that are ignored; other numbers have to be evenly spaced; each colour is a class.
    ignore_value: a value that is neither learned nor scored.

    Raises DataError, with a file, the values and the mend, for values that mean nothing, or several things.
    """
    in_colour = any(isinstance(value, tuple) for value in found.pixels)
    explicit: frozenset[Value] = frozenset()
    if ignore_value is not None:
        explicit = frozenset([(ignore_value,) * 3 if in_colour else ignore_value])
    if table:
        table, ignored = _with_ignored(table)
        explicit |= ignored
    values = set(found.pixels) - explicit
    if not values:
        raise DataError("every pixel of every mask is ignored: give masks with classes, or another --ignore_value")
    if table:
        classes = _listed_classes(found, values, table, explicit, in_colour)
    elif in_colour:
        classes = _classes_of_colours(found, {v for v in values if isinstance(v, tuple)}, explicit)
    else:
        classes = _classes_of_numbers(found, {v for v in values if isinstance(v, int)}, explicit)
    if len(classes.names) < 2:
        raise DataError(
            f"there is one class alone ({classes.names[0]}; the masks hold {_listing(found.pixels)}): "
            "give masks of two classes or more"
        )
    return classes


def _with_ignored(table: Sequence[ListedClass]) -> tuple[Sequence[ListedClass], frozenset[Value]]:
    """The table, and the values of the classes in it that are called void or the like, if it has two others."""
    void = [c for c in table if c.name.lower() in IGNORED_NAMES]
    if not void or len(table) - len(void) < 2:
        return table, frozenset()
    if table[0].value is None:
        table = tuple(ListedClass(c.name, place) for place, c in enumerate(table))
    ignored = (c.value for c in table if c.name.lower() in IGNORED_NAMES)
    return table, frozenset(value for value in ignored if value is not None)


def _listing(values: Iterable[Value], most: int = 12) -> str:
    values = sorted(values)
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(shown(value) for value in values[:most]) + more


def _classes_of_numbers(found: FoundValues, values: set[int], ignored: frozenset) -> MaskClasses:
    ordered = tuple(sorted(values))
    if _is_soft(found, ordered):
        return MaskClasses(("background", "foreground"), (0, 255), ignored, nearest=True)
    if len(ordered) == 1:
        raise DataError(
            f"every mask holds the value {ordered[0]} alone, in {found.first_file(ordered[0])} and the others: "
            "give masks of two classes or more"
        )
    if len(ordered) > 2:
        unclear = not (are_class_numbers(ordered) or _are_evenly_spaced(ordered))
        classes = tuple(value for value in ordered if value != IGNORE)
        if IGNORE in values and are_class_numbers(classes) and not found.lossy:
            _check_ignored(found, classes)
            ordered, ignored = classes, ignored | {IGNORE}
        elif unclear or found.lossy:
            rare = found.rarest(ordered)
            lossy = "JPEG changes the values of a mask: save masks as PNG, or " if found.lossy else ""
            raise DataError(
                f"{found.first_file(rare)} holds {shown(rare)}; the masks hold {len(ordered)} values, "
                f"{_listing(ordered)}, which are no class numbers 0, 1, 2 ..: {lossy}mend the file, or {MEND}, "
                "or give one of them as --ignore_value"
            )
    names = ("background", "foreground") if len(ordered) == 2 else tuple(map(str, ordered))
    return MaskClasses(names, ordered, ignored)


def _is_soft(found: FoundValues, ordered: Sequence[int]) -> bool:
    """Whether the levels are black and white, blurred by JPEG or by a resize."""
    dark, light = [v for v in ordered if v <= _SOFT], [v for v in ordered if v >= 255 - _SOFT]
    if not dark or not light or len(ordered) <= (2 if found.lossy else 3):
        return False
    if are_class_numbers([v for v in ordered if v != IGNORE]) and not found.lossy:
        return False
    return found.count([*dark, *light]) >= 0.9 * found.count(ordered) and _blurred(found, ordered)


def _blurred(found: FoundValues, ordered: Sequence[int]) -> bool:
    """No level between black and white has the pixels of a class: at most a third of what white has."""
    between = [v for v in ordered if _SOFT < v < 255 - _SOFT]
    light = found.count(v for v in ordered if v >= 255 - _SOFT)
    return all(found.count([v]) <= light / 3 for v in between)


def are_class_numbers(ordered: Sequence[int]) -> bool:
    """0, 1, 2, .. but for some classes that do not occur."""
    return 2 <= len(ordered) <= _MAX_NUMBERS and ordered[-1] <= 2 * len(ordered)


def _are_evenly_spaced(ordered: Sequence[int]) -> bool:
    step = (ordered[-1] - ordered[0]) / (len(ordered) - 1)
    regular = all(abs(value - (ordered[0] + k * step)) <= 1 for k, value in enumerate(ordered))
    return len(ordered) <= _MAX_GREYS and ordered[0] == 0 and regular


def _check_ignored(found: FoundValues, classes: Sequence[int]) -> None:
    """Refuse 255 beside class numbers where it could as well be the foreground."""
    marked = [classes[k] for k in range(1, len(classes))]
    files_of_marked = {path for value in marked for path in found.pixels[value]}
    apart = not any(path in files_of_marked for path in found.pixels[IGNORE])
    if apart or found.count([IGNORE]) > found.count(marked):
        raise DataError(
            f"{found.first_file(IGNORE)} holds 255 and {found.first_file(marked[0])} holds {marked[0]}: give "
            f"--ignore_value 255 if 255 marks pixels to ignore, else make the masks alike or {MEND}"
        )


def _classes_of_colours(found: FoundValues, values: set[Colour], ignored: frozenset) -> MaskClasses:
    rare = found.rarest(values)
    total = found.count(values)
    n_stray = sum(found.count([value]) < _STRAY * total for value in values)
    if len(values) > _MAX_COLOURS or (len(values) > 2 and n_stray):
        why = (
            "JPEG blurs the colours of a mask, save masks as PNG"
            if found.lossy
            else "a mask has one colour a class"
        )
        raise DataError(
            f"{found.first_file(rare)} holds {shown(rare)}; the masks hold {len(values)} colours, "
            f"{_listing(values, 6)}: {why}, or {MEND}"
        )
    ordered = sorted(values)
    if ordered[0] != (0, 0, 0) and len(ordered) == 2:
        ordered.sort(key=lambda value: -found.count([value]))
    if len(ordered) == 2:
        names = ("background", "foreground")
    else:
        names = tuple("background" if value == (0, 0, 0) else shown(value) for value in ordered)
    return MaskClasses(names, tuple(ordered), ignored)


def _listed_classes(
    found: FoundValues, values: set, table: Sequence[ListedClass], ignored: frozenset, in_colour: bool
) -> MaskClasses:
    counted = [c for c in table if c.value not in ignored or c.value is None]
    names = tuple(c.name for c in counted)
    if counted and counted[0].value is None:
        return _named_classes(found, values, names, ignored, in_colour)
    listed: list[Value] = [c.value for c in counted if c.value is not None]
    if isinstance(listed[0], tuple) and not in_colour:
        greys = [value[0] if isinstance(value, tuple) and len(set(value)) == 1 else None for value in listed]
        if values <= set(greys):
            listed = [grey if grey is not None else value for grey, value in zip(greys, listed, strict=True)]
        elif values <= {*range(len(table)), IGNORE}:
            # The colours are for the eye, the masks hold places in the list.
            places = {c.value: k for k, c in enumerate(table)}
            ignored = frozenset(places.get(value, value) for value in ignored)
            listed = [places[value] for value in listed]
    if in_colour and isinstance(listed[0], int):
        listed = [_rgb(value) for value in listed]
    unknown = values - set(listed) - ignored
    if unknown == {IGNORE} and set(listed) <= set(range(2 * len(listed))):
        unknown, ignored = set(), ignored | {IGNORE}
    if unknown and not (found.lossy and _are_far_apart(listed)):
        _refuse_unknown(found, unknown, listed)
    return MaskClasses(names, tuple(listed), ignored, nearest=bool(unknown))


def _are_far_apart(values: Sequence[Value]) -> bool:
    """So that what JPEG makes of a value is still nearest to it."""
    pairs = ((a, b) for k, a in enumerate(values) for b in values[:k])
    return all(max(abs(x - y) for x, y in zip(_rgb(a), _rgb(b), strict=True)) > 2 * _SOFT for a, b in pairs)


def _named_classes(
    found: FoundValues, values: set, names: tuple[str, ...], ignored: frozenset, in_colour: bool
) -> MaskClasses:
    """Names without values: of the class numbers 0, 1, .., or of the two values that the masks hold."""
    if not in_colour and values <= {*range(len(names)), IGNORE} and values != {0, IGNORE}:
        if IGNORE in values:
            _check_ignored(found, [0, *sorted(values - {0, IGNORE})])
            ignored |= {IGNORE}
        return MaskClasses(names, tuple(range(len(names))), ignored)
    if len(names) == 1:
        names = ("background", *names)
    if len(names) == 2:
        classes = (_classes_of_colours if in_colour else _classes_of_numbers)(found, values, ignored)
        if len(classes.values) == 2:
            return MaskClasses(names, classes.values, classes.ignored, classes.nearest)
    numbers = list(range(len(names)))
    outside = values - set(numbers) or values
    _refuse_unknown(found, outside, numbers)


def _refuse_unknown(found: FoundValues, unknown: set, listed: Sequence[Value]) -> NoReturn:
    path = found.first_file(found.rarest(unknown))
    of_file = _listing(value for value in unknown if path in found.pixels[value])
    raise DataError(
        f"{path} holds {of_file}, but the {len(listed)} listed classes are {_listing(listed)}: mend the mask, "
        f"or {MEND}, or give one value as --ignore_value"
    )
