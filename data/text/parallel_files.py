"""Reading parallel text: line-aligned files, tables of every layout met in the wild, and the hub's data sets."""

import ast
import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet

from data.errors import DataError
from data.hub import load_from_hub
from data.text.parallel_text import ParallelText
from data.text.text_column import TextColumn

Languages = tuple[str, str]  # names of source and target, such as ("en", "it")
Pair = tuple[str, str]

_SIDES = (  # columns named by side instead of by language
    ("source", "target"),
    ("src", "tgt"),
    ("src", "trg"),
    ("source", "translation"),
    ("text", "translation"),
)
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_CSV_DELIMITERS = (",", ";", "\t")


def read_parallel_files(paths: Sequence[str | Path], languages: Languages | None = None) -> ParallelText:
    """Read two line-aligned files, or any number of tables; each plain or .gz, in UTF-8.

    paths: (source, target) with one sentence a line; or tables, one after another:
        .tsv, or one .txt with tabs: source, tab, target. Columns of nothing but numbers, and a third one of
            text, are left out: Tatoeba's files have ids, or an attribution. A first line of column names is none
            of the pairs.
        .csv: with a first line of column names.
        .jsonl, .json: an object a line, or a list of objects.
        .parquet.
        Where columns are named, source and target are those named as the languages, or "source" and "target",
        or the two languages inside of "translation", as the hub's data sets have it.
    languages: (source, target) as the columns name them.

    Lines end at "\\n" (or "\\r\\n") only, empty ones are kept, and a byte-order mark is removed. A missing
    sentence (null) is an empty one.

    Raises DataError, with file and line, for files of unequal length, an empty or missing file, bytes that are
    not UTF-8, a damaged .gz, and a row or object of another form.
    """
    files = [Path(path) for path in paths]
    readers = [reader for reader in map(_table_reader, files) if reader is not None]
    if len(files) == 1 and _suffix(files[0]) == ".txt" and "\t" in _read_text(files[0]):
        readers = [_read_tsv]
    if files and len(readers) == len(files):
        return ParallelText.joined([read(file, languages) for file, read in zip(files, readers, strict=True)])
    if len(files) == 2 and not readers:
        return _read_line_aligned(files[0], files[1])
    if len(files) == 1:
        raise DataError(
            f"{files[0]}: one file of parallel text must be .tsv, .csv, .jsonl, .json or .parquet "
            "(or .gz of these); else give two"
        )
    raise DataError(
        f"{len(files)} files of parallel text ({', '.join(file.name for file in files[:3])}): "
        "give SOURCE and TARGET, or .tsv, .csv, .jsonl, .json or .parquet alone"
    )


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _table_reader(path: Path) -> Callable[[Path, Languages | None], ParallelText] | None:
    return {
        ".tsv": _read_tsv,
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".ndjson": _read_jsonl,
        ".json": _read_json,
        ".parquet": _read_parquet,
    }.get(_suffix(path))


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no complete gzip file ({error}): fetch or pack it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_text(path: Path) -> str:
    data = _read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise DataError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8: convert the file to UTF-8") from error
    if not text:
        raise DataError(f"{path} is empty: it needs one sentence a line")
    return text


def _read_lines(path: Path) -> list[str]:
    text = _read_text(path)
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _read_column(path: Path) -> TextColumn:
    """What `_read_lines` gives, without a string for each line."""
    data = _read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if not data:
        raise DataError(f"{path} is empty: it needs one sentence a line")
    data = data.replace(b"\r\n", b"\n").removesuffix(b"\r")
    if not data.endswith(b"\n"):
        data += b"\n"
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
    offsets = np.concatenate([[0], ends - np.arange(len(ends))])  # once the ends of lines are gone
    lines = TextColumn.from_buffers(np.frombuffer(data.replace(b"\n", b""), np.uint8), offsets)
    try:
        lines.array.validate(full=True)
    except pyarrow.ArrowInvalid:
        return TextColumn(_read_lines(path))  # raises what says where the file is not UTF-8
    return lines


def _read_line_aligned(source: Path, target: Path) -> ParallelText:
    sources, targets = _read_column(source), _read_column(target)
    if len(sources) != len(targets):
        raise DataError(
            f"{source} has {len(sources)} lines but {target} has {len(targets)}: the two files must be line-aligned"
        )
    return ParallelText(sources, targets)


# Tables without column names


def _read_tsv(path: Path, languages: Languages | None) -> ParallelText:
    lines = _read_column(path)
    first = lines[0].split("\t")
    width = len(first)
    if width < 2:
        raise DataError(f"{path}:1: {width} columns, not 2 (source, tab, target)")
    widths = 1 + pyarrow.compute.count_substring(lines.array, "\t").to_numpy()
    uneven = np.flatnonzero(widths != width)
    if len(uneven):
        n = int(uneven[0])
        raise DataError(f"{path}:{n + 1}: {widths[n]} columns, not {width} as in the first line")
    named = _find_columns(first, languages)
    has_names = named is not None and named != ("translation",)
    cells = pyarrow.compute.split_pattern(lines.array, "\t").flatten()

    def column(number: int) -> TextColumn:
        rows = np.arange(has_names, len(lines))
        return TextColumn(cells.take(pyarrow.array(rows * width + number)))

    if named is not None and has_names:
        source, target = map(first.index, named)
    else:
        source, target = _text_columns(column, width, path)
    return ParallelText(column(source), column(target))


def _text_columns(column: Callable[[int], TextColumn], width: int, path: Path) -> tuple[int, int]:
    """Which columns are source and target: the first two of those that do not hold numbers alone."""
    if width == 2:
        return 0, 1
    text = [c for c in range(width) if not all(map(_NUMBER.fullmatch, column(c)))]
    if not 2 <= len(text) <= 3:
        raise DataError(f"{path}:1: {len(text)} columns of text, not 2 (source, target): keep these two")
    return text[0], text[1]


# Tables with column names


def _find_columns(names: Iterable[str], languages: Languages | None) -> tuple[str, ...] | None:
    """The names of the columns of source and target, or ("translation",), or None where there are neither."""
    by_folded_name = {name.strip().casefold(): name for name in names}
    for wanted in (*([languages] if languages else []), *_SIDES):
        found = [by_folded_name[name.casefold()] for name in wanted if name.casefold() in by_folded_name]
        if len(set(found)) == 2:  # both, and not the same one
            return tuple(found)
    return (by_folded_name["translation"],) if "translation" in by_folded_name else None


def _no_columns(names: Iterable[str], languages: Languages | None, where: str) -> DataError:
    wanted = [f'"{source}" with "{target}"' for source, target in (*([languages] if languages else []), _SIDES[0])]
    found = ", ".join(name.strip() for name in names)[:100] or "none"
    return DataError(
        f"{where}: no columns {', nor '.join([*wanted, chr(34) + 'translation' + chr(34)])} (found: {found}): "
        "name the columns by --languages"
    )


def _pair(row: dict[str, Any], columns: tuple[str, ...], languages: Languages | None, where: str) -> Pair:
    """Source and target of a row, from `columns` as `_find_columns` gives them."""
    if len(columns) == 1:
        if languages is None:
            raise DataError(f'{where}: a "translation" needs the two languages to be named')
        row, columns = _as_object(row[columns[0]], where), languages
        for language in languages:
            if language not in row:
                raise DataError(
                    f'{where}: "translation" has no "{language}" (found: {", ".join(row)}): '
                    "name its languages by --languages"
                )
    sides = ["" if row[column] is None else row[column] for column in columns]
    if not all(isinstance(side, str) for side in sides):
        raise DataError(f'{where}: no text under both "{columns[0]}" and "{columns[1]}"')
    try:
        "".join(sides).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's \ud800 escapes can spell half a character
        raise DataError(f"{where}: an unpaired surrogate escape, which is no character") from error
    return sides[0], sides[1]


def _as_object(translation: Any, where: str) -> dict[str, Any]:
    """A "translation": an object, or one written out as JSON or, as a CSV file of `datasets` has it, in Python."""
    if isinstance(translation, str):
        for parse in (json.loads, ast.literal_eval):
            try:
                parsed = parse(translation)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(parsed, dict):
                return parsed
    if not isinstance(translation, dict):
        raise DataError(f'{where}: "translation" is no object of languages, such as {{"en": "..", "it": ".."}}')
    return translation


def _read_csv(path: Path, languages: Languages | None) -> ParallelText:
    pairs = ParallelText.from_pairs(_csv_pairs(path, languages))
    if len(pairs) == 0:
        raise DataError(f"{path} has no rows but its first line: it needs a pair a line")
    return pairs


def _csv_pairs(path: Path, languages: Languages | None) -> Iterator[Pair]:
    text = _read_text(path)
    for delimiter in _CSV_DELIMITERS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
        except csv.Error as error:
            raise DataError(f"{path}:1: not CSV ({error})") from error
        if columns := _find_columns(names, languages):
            break
    else:
        names = next(csv.reader([text.split("\n", 1)[0].rstrip("\r")]), [])
        missing = _no_columns(names, languages, f"{path}:1")
        raise DataError(f"{missing}, or put a first line of names, source,target, before the pairs")
    line = rows.line_num + 1
    try:
        for row in rows:
            if row and len(row) != len(names):
                raise DataError(
                    f"{path}:{line}: {len(row)} fields where the first line names {len(names)}: "
                    f"text with {'a tab' if delimiter == chr(9) else repr(delimiter)} in it needs quotes around it"
                )
            if row:
                named = dict(zip(names, row, strict=True))
                yield _pair(named, columns, languages, f"{path}:{line}")
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: not CSV ({error}): is a quote left open?") from error


def _read_jsonl(path: Path, languages: Languages | None) -> ParallelText:
    pairs = ParallelText.from_pairs(_jsonl_pairs(path, languages))
    if len(pairs) == 0:
        raise DataError(f"{path} holds no objects: each line must be one")
    return pairs


def _jsonl_pairs(path: Path, languages: Languages | None) -> Iterator[Pair]:
    for n, line in enumerate(_read_column(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{n}: not JSON ({error.msg}): each line must be one object") from error
        yield _json_pair(row, languages, f"{path}:{n}")


def _json_pair(row: Any, languages: Languages | None, where: str) -> Pair:
    names = row if isinstance(row, dict) else ()
    columns = _find_columns(names, languages)
    if columns is None:
        raise _no_columns(names, languages, where)
    return _pair(row, columns, languages, where)


def _read_json(path: Path, languages: Languages | None) -> ParallelText:
    text = _read_text(path)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{"):  # `datasets` writes an object a line into .json as well
            return _read_jsonl(path, languages)
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == len(content) == 1 else [content]
    if not isinstance(content, list) or not content:
        raise DataError(f"{path}:1: no list of objects: each pair must be one")
    return ParallelText.from_pairs(
        _json_pair(row, languages, f"{path}: object {n}") for n, row in enumerate(content, 1)
    )


def _read_parquet(path: Path, languages: Languages | None) -> ParallelText:
    table = _parquet_table(path, languages, data=_read_bytes(path))
    if table is None:
        names = pyarrow.parquet.read_schema(io.BytesIO(_read_bytes(path))).names
        raise _no_columns(names, languages, str(path))
    return _arrow_text(table, languages, str(path))


def _parquet_table(path: Path, languages: Languages | None, data: bytes | None = None) -> "pyarrow.Table | None":
    """The columns of the pairs of a parquet file; None where it has no such columns."""

    def opened() -> "str | io.BytesIO":
        return str(path) if data is None else io.BytesIO(data)

    try:
        schema = pyarrow.parquet.read_schema(opened())
        columns = _arrow_columns(schema, languages)
        return columns and pyarrow.parquet.read_table(opened(), columns=list(columns))
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"cannot read {path} as parquet ({reason}): fetch it again") from error


def _arrow_columns(schema: "pyarrow.Schema", languages: Languages | None) -> tuple[str, ...] | None:
    """As `_find_columns`; a struct "translation" counts where it holds both languages."""
    columns = _find_columns(schema.names, languages)
    if columns and len(columns) == 1 and pyarrow.types.is_struct(schema.field(columns[0]).type):
        inside = {field.name for field in schema.field(columns[0]).type}
        return columns if languages and set(languages) <= inside else None
    return columns


def _arrow_text(table: "pyarrow.Table", languages: Languages | None, where: str) -> ParallelText:
    columns = _arrow_columns(table.schema, languages)
    assert columns is not None  # callers come with tables that have them
    if languages and len(columns) == 1 and pyarrow.types.is_struct(table.schema.field(columns[0]).type):
        arrays = [pyarrow.compute.struct_field(table[columns[0]], language) for language in languages]
        columns = languages
    else:
        arrays = [table[column] for column in columns]
    if len(arrays) == 2 and all(_holds_text(array.type) for array in arrays):
        return ParallelText(*map(TextColumn.of_arrow, arrays))
    return ParallelText.from_pairs(
        _pair(dict(zip(columns, row, strict=True)), columns, languages, f"{where}: row {n}")
        for n, row in enumerate(zip(*(array.to_pylist() for array in arrays), strict=True), 1)
    )


def _holds_text(kind: "pyarrow.DataType") -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


# The hub's data sets


def load_hub_pairs(
    dataset: str,
    config: str,
    languages: Languages,
    data_dir: str | Path | None = None,
    revision: str | None = None,
) -> ParallelText:
    """All pairs of a translation data set, from the Hugging Face hub or from `data_dir`.

    dataset, config: such as "Helsinki-NLP/opus_books", "en-it".
    languages: (source, target) codes, such as ("en", "it").
    data_dir: a folder with the data set as the hub has it (.parquet files with a column `translation`, or one
        for each language; if some lie below a folder named `config`, those alone), or else with line-aligned
        files that are named alike but for the language (corpus.en-it.en and corpus.en-it.it, plain or .gz).
        With it, no network is used.
    revision: a branch, tag or commit of the hub's data set, such as "refs/convert/parquet".

    The data set's own splits are put together, in the order of their names, since `hashed_splits` makes ours.

    Raises DataError for a `data_dir` without such files or with damaged ones, and, without one, where the hub
    cannot be reached and the data set is not in its local cache.
    """
    if data_dir is None:
        return _download(dataset, config, languages, revision)
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder")
    tables = [_parquet_table(path, languages) for path in parquet_files(data_dir, config)]
    texts = [_arrow_text(table, languages, str(data_dir)) for table in tables if table is not None]
    if not any(map(len, texts)):
        texts = [_read_line_aligned(*paths) for paths in aligned_files(data_dir, languages)]
    if not any(map(len, texts)):
        source, target = languages
        raise DataError(
            f"{data_dir} holds no {source}-{target} text: neither *.parquet with a `translation` column, "
            f"nor *.{source} with *.{target} (plain or .gz); name other files by --train_files"
        )
    return ParallelText.joined(texts)


def parquet_files(data_dir: Path, config: str) -> list[Path]:
    """The parquet files of a data set's copy; if some lie below a folder named `config`, those alone."""
    paths = sorted(data_dir.rglob("*.parquet"))
    return [path for path in paths if config in path.relative_to(data_dir).parts] or paths


def aligned_files(data_dir: Path, languages: Languages) -> list[tuple[Path, Path]]:
    """The pairs of files of source and target below a folder that are named alike but for the language."""
    source, target = languages
    files = {str(path): path for path in sorted(data_dir.rglob("*")) if path.is_file()}
    found = []
    for name, path in files.items():
        name = name.removesuffix(".gz")
        if not name.endswith(f".{source}"):
            continue
        stem = name.removesuffix(f".{source}")
        partner = files.get(f"{stem}.{target}") or files.get(f"{stem}.{target}.gz")
        if partner is not None:
            found.append((path, partner))
    return found


def _download(dataset: str, config: str, languages: Languages, revision: str | None) -> ParallelText:
    splits = load_from_hub(
        dataset,
        config,
        revision=revision,
        ways_out="or give --data_dir with its parquet files, or --train_files SRC TGT with text of your own",
    )
    texts = []
    for name in sorted(splits):
        table = splits[name].data.table
        columns = _arrow_columns(table.schema, languages)
        if columns is None:
            raise DataError(f"{dataset} ({config}) has no translations between {' and '.join(languages)}")
        texts.append(_arrow_text(table.select(list(columns)), languages, f"{dataset} ({config}), {name}"))
    return ParallelText.joined(texts)
