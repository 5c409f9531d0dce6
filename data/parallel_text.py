"""Parallel text: reading, cleaning and splitting pairs of a source sentence and its translation."""

import codecs
import functools
import gzip
import json
import sys
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from data.errors import DataError
from data.hub import load_from_hub

_FREE_CHARACTERS = 20  # a sentence may be this much longer than its translation, whatever the ratio


@dataclass(frozen=True)
class ParallelText:
    """`targets[i]` is the translation of `sources[i]`."""

    sources: list[str]
    targets: list[str]

    def __post_init__(self):
        if len(self.sources) != len(self.targets):
            raise ValueError(f"{len(self.sources)} sources, but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.sources)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(source, target) in order."""
        return zip(self.sources, self.targets, strict=True)


def _from_pairs(pairs: Sequence[tuple[str, str]]) -> ParallelText:
    return ParallelText([source for source, _ in pairs], [target for _, target in pairs])


# Files


def read_parallel_files(paths: Sequence[str | Path], languages: tuple[str, str] | None = None) -> ParallelText:
    """Read two line-aligned files, or one .tsv or .jsonl file; each plain or .gz, in UTF-8.

    paths: (source, target) with one sentence a line; or one .tsv of two columns, source and target; or one
        .jsonl of {"source": .., "target": ..} or, given `languages`, of the hub's objects
        {"translation": {"en": .., "it": ..}}.
    languages: (source, target) codes, such as ("en", "it"); used for "translation" alone.

    Lines end at "\\n" (or "\\r\\n") only, empty ones are kept, and a byte-order mark is removed.

    Raises DataError, with file and line, for files of unequal length, an empty or missing file, bytes that are
    not UTF-8, a damaged .gz, and a row or object of another form.
    """
    if len(paths) == 2:
        sources, targets = map(_read_lines, paths)
        if len(sources) != len(targets):
            raise DataError(
                f"{paths[0]} has {len(sources)} lines but {paths[1]} has {len(targets)}: "
                "the two files must be line-aligned"
            )
        return ParallelText(sources, targets)
    if len(paths) != 1:
        raise DataError(f"{len(paths)} files of parallel text: give SOURCE and TARGET, or one .tsv or .jsonl")
    path = Path(paths[0])
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".tsv":
        return _from_pairs([_tsv_pair(line, f"{path}:{n}") for n, line in enumerate(_read_lines(path), 1)])
    if suffix == ".jsonl":
        return _from_pairs(
            [_json_pair(line, languages, f"{path}:{n}") for n, line in enumerate(_read_lines(path), 1)]
        )
    raise DataError(f"{path}: one file of parallel text must be .tsv or .jsonl (or .gz of these); else give two")


def _read_lines(path: str | Path) -> list[str]:
    path = Path(path)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no complete gzip file ({error}): fetch or pack it again") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise DataError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8: convert the file to UTF-8") from error
    if not text:
        raise DataError(f"{path} is empty: it needs one sentence a line")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _tsv_pair(line: str, where: str) -> tuple[str, str]:
    columns = line.split("\t")
    if len(columns) != 2:
        raise DataError(f"{where}: {len(columns)} columns, not 2 (source, tab, target)")
    return columns[0], columns[1]


def _json_pair(line: str, languages: tuple[str, str] | None, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}): each line must be one object") from error
    keys = ("source", "target")
    if isinstance(row, dict) and "translation" in row:
        if languages is None:
            raise DataError(f'{where}: a "translation" needs the two languages to be named')
        row, keys = row["translation"], languages
    pair = tuple(row.get(key) if isinstance(row, dict) else None for key in keys)
    if not all(isinstance(side, str) for side in pair):
        raise DataError(f'{where}: no text under both "{keys[0]}" and "{keys[1]}"')
    try:
        "".join(pair).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON's \ud800 escapes can spell half a character
        raise DataError(f"{where}: an unpaired surrogate escape, which is no character") from error
    return pair


# Cleaning and splits


def clean(text: ParallelText, max_length_ratio: float = 3.0) -> tuple[ParallelText, dict[str, int]]:
    """Normalise the white space and composition of each sentence, and drop the pairs that cannot be used.

    Each side becomes NFC, with every run of white space one space and none at the ends. Then these are
    dropped, each pair counted once, under the first reason that holds:

    - "empty": a side without text;
    - "length_ratio": the longer side has more than `max_length_ratio` × the characters of the shorter + 20.
      The allowance leaves short pairs alone ("Go." → "Va-t'en !"), whose ratios mean nothing. Pairs of a
      script with few characters a word (Chinese) and one with many (Latin) need a ratio of about 5;
    - "duplicate": the same source and target as an earlier pair.

    Returns the kept pairs in their order and the counts "read", "empty", "length_ratio", "duplicate", "kept".
    """
    counts = dict.fromkeys(("read", "empty", "length_ratio", "duplicate", "kept"), 0)
    kept: dict[tuple[str, str], None] = {}  # an ordered set
    for source, target in text.pairs():
        pair = _normalise(source), _normalise(target)
        shorter, longer = sorted(map(len, pair))
        if shorter == 0:
            counts["empty"] += 1
        elif longer > max_length_ratio * shorter + _FREE_CHARACTERS:
            counts["length_ratio"] += 1
        elif pair in kept:
            counts["duplicate"] += 1
        else:
            kept[pair] = None
    counts["read"], counts["kept"] = len(text), len(kept)
    return _from_pairs(list(kept)), counts


def _normalise(sentence: str) -> str:
    return " ".join(unicodedata.normalize("NFC", sentence).split())


def hashed_splits(
    text: ParallelText, valid_fraction: float, test_fraction: float
) -> tuple[ParallelText, ParallelText, ParallelText, dict[str, int]]:
    """Split into train, validation and test so that no sentence of either side stands in two of them.

    Sentences count as the same if they differ in case, punctuation or white space alone. The hash of the
    source decides where a pair goes, so the splits depend neither on the order of the pairs nor on a seed, and
    all translations of a source stay together. Then a pair is dropped if its target is the same as one that
    is held out: training pairs are compared with validation and test, validation pairs with test.

    The fractions are of the distinct sources, to within chance. Each split keeps the order of `text`.

    Returns (train, valid, test, counts) with counts "train", "valid", "test" and "target_in_heldout", the
    number of pairs dropped. Raises DataError for fractions that leave nothing to train on, and for a split
    that is asked for but comes out empty.
    """
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
        raise DataError(
            f"fractions of {valid_fraction} for validation and {test_fraction} for test: "
            "neither may be negative, and their sum must be below 1"
        )
    train, valid, test = [], [], []  # of (target key, pair)
    for pair in text.pairs():
        source_key, target_key = map(_sentence_key, pair)
        digest = blake2b(source_key.encode("utf-8"), digest_size=8).digest()
        position = int.from_bytes(digest, "big") / 2**64  # uniform in [0, 1)
        if position < test_fraction:
            test.append((target_key, pair))
        elif position < test_fraction + valid_fraction:
            valid.append((target_key, pair))
        else:
            train.append((target_key, pair))
    heldout = {key for key, _ in test}
    valid = [entry for entry in valid if entry[0] not in heldout]
    heldout.update(key for key, _ in valid)
    train = [entry for entry in train if entry[0] not in heldout]

    fractions = {"train": 1.0, "valid": valid_fraction, "test": test_fraction}
    counts = {"train": len(train), "valid": len(valid), "test": len(test)}
    for name, fraction in fractions.items():
        if fraction > 0 and counts[name] == 0:
            raise DataError(f"the {name} split of {len(text)} pairs is empty: give more text or other fractions")
    counts["target_in_heldout"] = len(text) - sum(counts.values())
    splits = [_from_pairs([pair for _, pair in split]) for split in (train, valid, test)]
    return *splits, counts


def without_sentences_of(text: ParallelText, heldout: ParallelText) -> ParallelText:
    """The pairs of `text` that share no sentence with `heldout`, on either side, as `hashed_splits` compares."""
    sources = {_sentence_key(sentence) for sentence in heldout.sources}
    targets = {_sentence_key(sentence) for sentence in heldout.targets}
    return _from_pairs(
        [(s, t) for s, t in text.pairs() if _sentence_key(s) not in sources and _sentence_key(t) not in targets]
    )


def _sentence_key(sentence: str) -> str:
    """What two sentences that differ in case, punctuation or white space alone have in common."""
    folded = unicodedata.normalize("NFC", sentence.casefold())
    # A sentence of punctuation alone is known by its punctuation.
    return " ".join(folded.translate(_punctuation_to_space()).split()) or " ".join(folded.split())


@functools.cache
def _punctuation_to_space() -> dict[int, str]:
    return {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "P"}


# The hub's data sets


def load_hub_pairs(
    dataset: str,
    config: str,
    languages: tuple[str, str],
    data_dir: str | Path | None = None,
    revision: str | None = None,
) -> ParallelText:
    """All pairs of a translation data set, from the Hugging Face hub or from `data_dir`.

    dataset, config: such as "Helsinki-NLP/opus_books", "en-it".
    languages: (source, target) codes, such as ("en", "it").
    data_dir: a folder with the data set as the hub has it (.parquet files with a column `translation`; if
        some lie below a folder named `config`, those alone), or else with line-aligned files that are named
        alike but for the language (corpus.en-it.en and corpus.en-it.it, plain or .gz). With it, no network
        is used.
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
    text = _read_parquet_files(data_dir, config, languages) or _read_aligned_files(data_dir, languages)
    if not text:
        source, target = languages
        raise DataError(
            f"{data_dir} holds no {source}-{target} text: neither *.parquet with a `translation` column, "
            f"nor *.{source} with *.{target} (plain or .gz)"
        )
    return text


def _read_parquet_files(data_dir: Path, config: str, languages: tuple[str, str]) -> ParallelText | None:
    paths = sorted(data_dir.rglob("*.parquet"))
    paths = [path for path in paths if config in path.relative_to(data_dir).parts] or paths
    if not paths:
        return None
    import pyarrow
    import pyarrow.parquet

    sources: list[str] = []
    targets: list[str] = []
    for path in paths:
        try:
            if not _has_languages(pyarrow.parquet.read_schema(path), languages):
                continue
            translations = pyarrow.parquet.read_table(path, columns=["translation"])["translation"]
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"cannot read {path} as parquet ({reason}): fetch it again") from error
        for sentences, language in zip((sources, targets), languages, strict=True):
            sentences += _column(translations, language)
    return ParallelText(sources, targets) if sources else None


def _has_languages(schema, languages: tuple[str, str]) -> bool:
    import pyarrow

    if "translation" not in schema.names or not pyarrow.types.is_struct(schema.field("translation").type):
        return False
    return set(languages) <= {field.name for field in schema.field("translation").type}


def _column(translations, language: str) -> list[str]:
    """One language of an Arrow column of translations; a missing sentence is an empty one."""
    import pyarrow.compute

    return [sentence or "" for sentence in pyarrow.compute.struct_field(translations, language).to_pylist()]


def _read_aligned_files(data_dir: Path, languages: tuple[str, str]) -> ParallelText | None:
    source, target = languages
    files = {str(path): path for path in sorted(data_dir.rglob("*")) if path.is_file()}
    sources: list[str] = []
    targets: list[str] = []
    for name, path in files.items():
        name = name.removesuffix(".gz")
        if not name.endswith(f".{source}"):
            continue
        stem = name.removesuffix(f".{source}")
        partner = files.get(f"{stem}.{target}") or files.get(f"{stem}.{target}.gz")
        if partner is None:
            continue
        part = read_parallel_files([path, partner])
        sources += part.sources
        targets += part.targets
    return ParallelText(sources, targets) if sources else None


def _download(dataset: str, config: str, languages: tuple[str, str], revision: str | None) -> ParallelText:
    splits = load_from_hub(
        dataset,
        config,
        revision=revision,
        ways_out="or give --data_dir with its parquet files, or --train_files SRC TGT with text of your own",
    )
    sources: list[str] = []
    targets: list[str] = []
    for name in sorted(splits):
        table = splits[name].data
        if not _has_languages(table.schema, languages):
            raise DataError(f"{dataset} ({config}) has no translations between {' and '.join(languages)}")
        sources += _column(table.column("translation"), languages[0])
        targets += _column(table.column("translation"), languages[1])
    return ParallelText(sources, targets)
