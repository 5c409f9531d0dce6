"""Labelled images in parquet, as the Hugging Face hub keeps them."""

import json
from pathlib import Path

import numpy as np

from data.errors import DataError
from data.images.rows import HELD_OUT, ImageRows, RowSplits, no_rows, reason


def holds_parquet(folder: Path) -> bool:
    return any(_shards(folder, split) for split in ("train", *HELD_OUT))


def read_parquet(folder: Path) -> RowSplits:
    """train-*.parquet (or train/*.parquet, as the hub converts) and the shards of the held-out split likewise.

    The latter may be alone.

    Raises DataError for a shard or held-out split that is missing, a damaged file, columns that cannot be used and
    missing values.
    """
    test_paths = next(filter(None, (_checked_shards(folder, split) for split in HELD_OUT)), None)
    if test_paths is None:
        raise DataError(
            f"{folder} has train-*.parquet (or train/*.parquet) but no test-*.parquet nor validation-*.parquet"
        )
    test, names = rows_of_tables([_parquet_table(path) for path in test_paths])
    train_paths = _checked_shards(folder, "train")
    if not train_paths:
        return no_rows(), test, names
    train, names = rows_of_tables([_parquet_table(path) for path in train_paths])
    return train, test, names


def _shards(folder: Path, split: str) -> list[Path]:
    """Such as train-00000-of-00004.parquet to train-00003-of-00004.parquet, train.parquet or train/0000.parquet."""
    beside = [*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")]
    return sorted(beside or (folder / split).glob("*.parquet"))


def _checked_shards(folder: Path, split: str) -> list[Path]:
    paths = _shards(folder, split)
    for path in paths:
        total = path.stem.rpartition("-of-")[2]
        if "-of-" in path.stem and total.isdigit() and len(paths) != int(total):
            raise DataError(
                f"{path.parent} holds {len(paths)} of {path.name}'s {int(total)} shards: fetch all of them"
            )
    return paths


def _parquet_table(path: Path) -> tuple:
    """(path, Arrow table of the columns of images and labels)."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _image_and_label(file.schema_arrow, str(path))
            return str(path), file.read(columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as parquet ({reason(error)}): fetch it again") from error


def _image_and_label(schema, where: str) -> tuple[str, str]:
    """The names of the columns of encoded images and of labels."""
    from pyarrow import types

    def is_bytes(kind) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_image(kind) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type)
        return is_bytes(kind)

    images = [name for name in ("img", "image") if name in schema.names and is_image(schema.field(name).type)]
    integers = [field.name for field in schema if types.is_integer(field.type)]
    labels = [name for name in ("label", "fine_label") if name in integers]
    if not labels and len(integers) == 1:
        labels = integers
    if not images or not labels:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise DataError(
            f"{where} needs a column `img` or `image` of encoded images and one column `label` of integers; "
            f"it has {columns}"
        )
    return images[0], labels[0]


def rows_of_tables(tables: list) -> tuple[ImageRows, tuple[str, ...] | None]:
    """The rows of (where, Arrow table) pairs, and the class names.

    Raises DataError for a table without a column of encoded images and one of labels, and for missing values.
    """
    import pyarrow
    import pyarrow.compute

    images: list[bytes] = []
    labels: list[np.ndarray] = []
    places: list[str] = []
    for where, table in tables:
        image_name, label_name = _image_and_label(table.schema, where)
        column = table[image_name]
        if pyarrow.types.is_struct(column.type):
            column = pyarrow.compute.struct_field(column, "bytes")
        for name, values in ((image_name, column), (label_name, table[label_name])):
            if values.null_count:
                row = values.is_null().to_pylist().index(True)
                raise DataError(f"{where} row {row}: nothing in column `{name}`: fill it or leave the row out")
        images += column.to_pylist()
        labels.append(table[label_name].to_numpy().astype(np.int64))
        places += [f"{where} row {row}" for row in range(len(table))]
    return ImageRows(images, np.concatenate(labels), places), _class_names(table.schema, label_name)


def _class_names(schema, label_name: str) -> tuple[str, ...] | None:
    """The names that `datasets` keeps in a table's metadata, if it has any for the column of labels."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(label_name, {}).get("names")
    return tuple(names) if names else None
