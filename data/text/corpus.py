"""From a corpus's name or files to token arrays: what train_translation.py trains and evaluates on."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import cached_arrays, cached_text, content_key
from data.errors import DataError
from data.text.parallel_files import aligned_files, load_hub_pairs, parquet_files, read_parallel_files
from data.text.parallel_text import (
    MAX_LENGTH_RATIO,
    ParallelText,
    clean,
    hashed_splits,
    lowercased,
    normalised,
    usual_length_ratio,
    without_empty,
    without_sentences_of,
)
from data.text.phrasebook import phrasebook_splits
from data.text.segmentation_ahead import SegmentationAhead
from data.text.text_column import TextColumn
from data.text.tokenization import MAX_WORD, Kind, TextTokenizer
from data.text.tokenized_text import TokenizedPairs, cached_tokens
from data.text.word_by_word import encode_column

_SPLITS = ("train", "valid", "test")
_SPLITS_FORMAT = 2  # to be raised when text is read, cleaned or split otherwise than before


@dataclass(frozen=True)
class CorpusSplits:
    """Cleaned sentence pairs, no sentence of either side in both train and a held-out split.

    Nor in both valid and test, unless both came from files.
    """

    train: ParallelText
    valid: ParallelText
    test: ParallelText
    counts: dict[str, int] = field(default_factory=dict)  # what was read, skipped (and why) and kept
    test_extra: ParallelText | None = None  # a further test set, reported beside `test`
    notes: tuple[str, ...] = ()  # what the user should know of how the text was read, a line each

    def lowercased(self) -> "CorpusSplits":
        """The same splits with all text in lower case."""
        return replace(
            self,
            train=lowercased(self.train),
            valid=lowercased(self.valid),
            test=lowercased(self.test),
            test_extra=self.test_extra and lowercased(self.test_extra),
        )


def load_text_splits(
    dataset: str,
    dataset_config: str,
    languages: tuple[str, str],
    *,
    dataset_revision: str | None = None,
    data_dir: str | Path | None = None,
    train_files: Sequence[str] = (),
    valid_files: Sequence[str] = (),
    test_files: Sequence[str] = (),
    extra_test_files: Sequence[str] = (),
    valid_fraction: float = 0.02,
    test_fraction: float = 0.02,
    max_length_ratio: float = 0.0,
    lowercase: bool = False,
) -> CorpusSplits:
    """The splits of `train_files` where given, else of the embedded "phrasebook", else of a hub data set.

    What has no files of its own is split off the training pairs by hash. Held-out files are used whole (only
    their empty lines are skipped), and other pairs that share a sentence with them are dropped and counted.
    `extra_test_files` are a test set beside the other one. All text is normalised (`data.text.parallel_text`), and,
    once it is split, put into lower case with `lowercase`.

    max_length_ratio: training pairs whose sides differ by more in length are dropped, as `clean` says; 0: by
        more than three times what is usual in this corpus.

    Splits come from the cache where the same files were split with the same settings before, and are then mapped
    into memory.

    Raises DataError.
    """
    if dataset == "phrasebook" and not train_files:
        if valid_files or test_files or extra_test_files:
            raise DataError("the phrasebook has splits of its own: give held-out files with --train_files alone")
        train, valid, test = map(ParallelText.from_pairs, phrasebook_splits())
        splits = CorpusSplits(train, valid, test)
        return splits.lowercased() if lowercase else splits
    held_out = {"valid": valid_files, "test": test_files, "test_extra": extra_test_files}
    settings: dict[str, Any] = {
        "format": _SPLITS_FORMAT,
        "unicode": unicodedata.unidata_version,
        "languages": languages,
        "valid_fraction": valid_fraction,
        "test_fraction": test_fraction,
        "max_length_ratio": max_length_ratio,
        "lowercase": lowercase,
    }
    columns: list[np.ndarray] = []
    read: Callable[[], ParallelText]
    if train_files:
        files: dict[str, Sequence[str]] = {"train": train_files, **held_out}
        read = partial(read_parallel_files, train_files, languages)
    elif data_dir:
        copies = [str(path) for path in parquet_files(Path(data_dir), dataset_config)]
        copies += [str(path) for pair in aligned_files(Path(data_dir), languages) for path in pair]
        files = {"data_dir": copies, **held_out}
        read = partial(load_hub_pairs, dataset, dataset_config, languages, data_dir, dataset_revision)
        settings["dataset_config"] = dataset_config
    else:
        files = held_out
        text = load_hub_pairs(dataset, dataset_config, languages, data_dir, dataset_revision)
        columns = [*text.sources.buffers(), *text.targets.buffers()]

        def read() -> ParallelText:
            return text

    def build() -> CorpusSplits:
        splits = _split(read(), held_out, languages, valid_fraction, test_fraction, max_length_ratio)
        return splits.lowercased() if lowercase else splits

    try:
        settings["files"] = {name: [_fingerprint(path) for path in paths] for name, paths in files.items()}
    except OSError:
        return build()  # which reads what can be read but once, and whose error names what cannot be read at all
    names = [*_SPLITS, *(["test_extra"] if extra_test_files else [])]
    return _cached_splits(content_key(settings, columns), names, build)


def _fingerprint(path: str | Path) -> tuple[str, str]:
    """A file's name, whose ending says how it is read, and a hash of its content. Raises OSError for a pipe."""
    if not Path(path).is_file():
        raise OSError(f"{path} is no file that can be read again")
    with Path(path).open("rb") as file:
        return Path(path).name, hashlib.file_digest(file, "blake2b").hexdigest()


def _cached_splits(key: str, names: Sequence[str], build: Callable[[], CorpusSplits]) -> CorpusSplits:
    """The splits of these names that are stored under `key`, built and stored on the first call."""
    columns = [f"{name}.{side}" for name in names for side in ("sources", "targets")]

    def arrays() -> dict[str, np.ndarray]:
        splits = build()
        about = json.dumps({"counts": splits.counts, "notes": splits.notes}).encode()
        stored = {"about": np.frombuffer(about, np.uint8)}
        for column in columns:
            name, side = column.split(".")
            stored[f"{column}.text"], stored[f"{column}.offsets"] = getattr(getattr(splits, name), side).buffers()
        return stored

    of_columns = [f"{column}.{buffer}" for column in columns for buffer in ("text", "offsets")]
    stored = cached_arrays(key, ["about", *of_columns], arrays)

    def text(name: str) -> ParallelText:
        return ParallelText(
            *(
                TextColumn.from_buffers(stored[f"{name}.{side}.text"], stored[f"{name}.{side}.offsets"])
                for side in ("sources", "targets")
            )
        )

    about = json.loads(stored["about"].tobytes())
    texts = {name: text(name) for name in names}
    return CorpusSplits(**texts, counts=about["counts"], notes=tuple(about["notes"]))


def _split(
    text: ParallelText,
    held_out: dict[str, Sequence[str]],
    languages: tuple[str, str],
    valid_fraction: float,
    test_fraction: float,
    max_length_ratio: float,
) -> CorpusSplits:
    """The cleaned splits of `text`, but for those that have files of their own."""
    text, counts, notes = _cleaned(normalised(text), max_length_ratio)
    train, valid, test, split_counts = hashed_splits(
        text, 0.0 if held_out["valid"] else valid_fraction, 0.0 if held_out["test"] else test_fraction
    )
    given = {name: read_heldout(files, languages) for name, files in held_out.items() if files}
    n_split = len(train) + len(valid) + len(test)
    for name, heldout in given.items():
        train = without_sentences_of(train, heldout)
        valid = without_sentences_of(valid, heldout)
        if name == "valid":  # two test sets may share sentences
            test = without_sentences_of(test, heldout)
    n_in_heldout_files = n_split - len(train) - len(valid) - len(test)
    valid, test, test_extra = given.get("valid", valid), given.get("test", test), given.get("test_extra")
    split_counts |= {
        "train": len(train),
        "valid": len(valid),
        "test": len(test),
        "in_heldout_files": n_in_heldout_files,
    }
    if len(train) == 0:
        raise DataError(
            f"no training pair is left of {counts['read']:,} pairs read: {_reasons(counts | split_counts)}; "
            "give text that does not stand in the held-out files"
        )
    for name, split in (("validation", valid), ("test", test)):
        if len(split) == 0:
            raise DataError(
                f"no {name} pair is left of {counts['read']:,} pairs read: give more text, or larger "
                "--valid_fraction and --test_fraction, or --valid_files and --test_files"
            )
    if test_extra is not None:
        split_counts["test_extra"] = len(test_extra)
    return CorpusSplits(train, valid, test, {**counts, **split_counts}, test_extra, tuple(notes))


_DROPPED = ("empty", "length_ratio", "duplicate", "target_in_heldout", "in_heldout_files")  # the reasons
_NOTABLE_SHARE = 0.01  # of the pairs: dropped for their length ratio, they are worth a line


def _cleaned(text: ParallelText, max_length_ratio: float) -> tuple[ParallelText, dict[str, int], list[str]]:
    """What `clean` keeps of normalised text, and counts, and what there is to say of it.

    Raises DataError where it keeps nothing.
    """
    usual_ratio = 1.0 if max_length_ratio else usual_length_ratio(text)
    limit = max_length_ratio or MAX_LENGTH_RATIO
    if not 1 <= limit < math.inf:
        raise DataError(f"--max_length_ratio {max_length_ratio:g}: give 1 or more, or 0 for what suits the corpus")
    kept, counts = clean(text, limit, usual_ratio)
    bound = limit * max(usual_ratio, 1 / usual_ratio)
    notes = []
    if usual_ratio != 1:
        notes.append(
            f"a target usually has {usual_ratio:.2f} characters for each of its source: pairs more than {limit:g} "
            "times off that are dropped (--max_length_ratio)"
        )
    n_uneven = counts["length_ratio"]
    if len(kept) == 0:
        mend = "give text with both sides"
        if n_uneven >= counts["empty"]:
            mend = f"raise --max_length_ratio above {bound:.3g}, or check that the files belong together"
        raise DataError(f"all {counts['read']:,} pairs were dropped: {_reasons(counts)}; {mend}")
    if n_uneven > _NOTABLE_SHARE * len(text):
        notes.append(
            f"warning: {n_uneven:,} of {len(text):,} pairs ({n_uneven / len(text):.1%}) were dropped for their "
            f"length ratio: raise --max_length_ratio above {bound:.3g} if they are good ones"
        )
    return kept, counts, notes


def _reasons(counts: dict[str, int]) -> str:
    """What pairs were dropped for, the commonest reason first: "length ratio 998, empty 2"."""
    dropped = [(counts[name], name) for name in _DROPPED if counts.get(name)]
    return ", ".join(f"{name.replace('_', ' ')} {n:,}" for n, name in sorted(dropped, reverse=True))


def read_heldout(files: Sequence[str], languages: tuple[str, str], lowercase: bool = False) -> ParallelText:
    """The pairs of a held-out set, as `read_parallel_files` takes it, without those that lack a side.

    Raises DataError.
    """
    text = without_empty(normalised(read_parallel_files(files, languages)))
    if len(text) == 0:
        raise DataError(f"{' and '.join(map(str, files))}: no pair with text on both sides")
    return lowercased(text) if lowercase else text


def evenly_spaced(n_all: int, n: int) -> list[int]:
    """n of the numbers 0 .. n_all - 1, or all of them for n = 0 and where there are no more.

    From all over a split: corpora are often sorted, by length or by topic.
    """
    n = min(n or n_all, n_all)
    return [i * n_all // n for i in range(n)]


class TranslationCorpus:
    """Token arrays of all splits, with the tokenizers trained on the training split alone.

    Tokenizers and arrays come from the cache where the same text was seen with the same settings before; arrays
    are then mapped into memory, and all processes of a machine share them. `joint` trains one tokenizer on both
    sides. Of more than `tokenizer_sample` training pairs, tokenizers see so many, evenly spaced (0: all).

    Training pairs with more than `max_len` tokens on a side, end mark included, are dropped and counted in
    `n_too_long`: before the tokenizer sees them where their characters tell (`n_unread`). Held-out ones never are,
    but only their first `eval_max_len` tokens are evaluated; of each split, by its name, `was_cut` (N,) says which
    sources have more. Raises DataError where no
    training pair is left.
    """

    def __init__(
        self,
        splits: CorpusSplits,
        *,
        kind: Kind,
        vocab_size: int,
        min_frequency: int,
        lowercase: bool,
        joint: bool,
        max_len: int,
        mask_numbers: bool = False,
        tokenizer_sample: int = 0,
        bpe_dropout: float = 0.0,
        eval_max_len: int = 1024,
        seed: int = 0,
    ):
        settings: dict[str, Any] = {
            "kind": kind,
            "vocab_size": vocab_size,
            "min_frequency": min_frequency,
            "lowercase": lowercase,
            "mask_numbers": mask_numbers,
        }

        def tokenizer_for(*columns: TextColumn) -> TextTokenizer:
            def train() -> str:
                return TextTokenizer.train(TextColumn.joined(columns), **settings).to_json()

            buffers = [buffer for column in columns for buffer in column.buffers()]
            return cached_text(content_key({**settings, "format": 3}, buffers), train, TextTokenizer.from_json)

        most_characters = max_len * MAX_WORD
        longest = np.maximum(splits.train.sources.n_characters(), splits.train.targets.n_characters())
        short = longest <= most_characters
        if not short.any():
            raise DataError(
                f"no training pair is left: each has more than {most_characters:,} characters, so more than "
                f"--max_len {max_len} tokens; give a sentence a line"
            )
        train = splits.train.where(short)
        self.n_unread = len(splits.train) - len(train)
        sample = train
        if 0 < tokenizer_sample < len(train):
            sample = train.select(evenly_spaced(len(train), tokenizer_sample))
        self.n_sampled = len(sample)
        if joint:
            self.source_tokenizer = self.target_tokenizer = tokenizer_for(sample.sources, sample.targets)
        else:
            self.source_tokenizer = tokenizer_for(sample.sources)
            self.target_tokenizer = tokenizer_for(sample.targets)

        self.tokenizers = {"source": self.source_tokenizer, "target": self.target_tokenizer}

        def tokens_of(text: ParallelText) -> TokenizedPairs:
            sides = []
            for tokenizer, sentences in (
                (self.source_tokenizer, text.sources),
                (self.target_tokenizer, text.targets),
            ):
                key = content_key({"tokenizer": tokenizer.to_json(), "format": 2}, sentences.buffers())
                sides.append(cached_tokens(key, partial(encode_column, tokenizer, sentences)))
            return TokenizedPairs(*sides)

        whole = tokens_of(train)
        self.max_len, self.eval_max_len, self.n_read = max_len, eval_max_len, len(splits.train)
        self.kept = self._short_enough(whole)
        self.train = whole.select(self.kept)
        self.n_too_long = self.n_read - len(self.train)
        if len(self.train) == 0:
            raise DataError(
                f"all {self.n_read:,} training pairs have more than --max_len {max_len} tokens on a side: raise it"
            )
        self.was_cut: dict[str, np.ndarray] = {}

        def heldout(name: str) -> TokenizedPairs:
            pairs = tokens_of(getattr(splits, name))
            self.was_cut[name] = pairs.source.lengths >= eval_max_len  # the end mark comes on top
            return TokenizedPairs(pairs.source.cut(eval_max_len - 1), pairs.target.cut(eval_max_len - 1))

        self.valid, self.test = heldout("valid"), heldout("test")
        self.test_extra = None if splits.test_extra is None else heldout("test_extra")
        self.splits = splits
        self._segmentation: SegmentationAhead | None = None
        if bpe_dropout > 0:
            tokenizers = self.source_tokenizer, self.target_tokenizer
            self._segmentation = SegmentationAhead(train.select(self.kept), tokenizers, bpe_dropout, seed)

    def __str__(self) -> str:
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in self.splits.counts.items())
        n_cut = {name: int(was_cut.sum()) for name, was_cut in self.was_cut.items()}
        cut = ", ".join(f"{name} {n:,}" for name, n in n_cut.items() if n)
        warning = (
            f"warning: sources of more than {self.eval_max_len:,} tokens are cut there (--eval_max_len): {cut}\n"
        )
        unread = f", {self.n_unread:,} of them by their characters alone" if self.n_unread else ""
        sample = ""
        if self.n_sampled < self.n_read - self.n_unread:
            sample = f", trained on {self.n_sampled:,} of the pairs (--tokenizer_sample)"
        return (warning if cut else "") + (
            f"{len(self.train):,} training pairs "
            f"({self.n_too_long:,} over --max_len {self.max_len} dropped{unread}), "
            f"{len(self.valid):,} validation, {len(self.test):,} test pairs; {counts or 'embedded'}\n"
            f"{self.source_tokenizer.vocab_size:,} source tokens, {self.target_tokenizer.vocab_size:,} target ones"
            f"{sample}"
        )

    def _short_enough(self, pairs: TokenizedPairs) -> np.ndarray:
        longest = np.maximum(pairs.source.lengths, pairs.target.lengths) + 1
        return np.flatnonzero(longest <= self.max_len)

    def only_in_source(self) -> np.ndarray:
        """Which tokens of a joint vocabulary stand in training sources but in no training target: (V,) bool."""
        n_tokens = self.source_tokenizer.vocab_size
        in_source, in_target = (
            np.bincount(side.own_tokens(), minlength=n_tokens) > 0
            for side in (self.train.source, self.train.target)
        )
        return in_source & ~in_target

    def training_pairs(self, epoch: int, more: bool = False) -> TokenizedPairs:
        """The training pairs of an epoch: under BPE-dropout segmented anew, by (seed, epoch) alone.

        Where there is `more` to come, the next epoch's are made meanwhile, by another process.
        """
        if self._segmentation is None:
            return self.train
        pairs = self._segmentation.pairs(epoch, more)
        return pairs.select(self._short_enough(pairs))  # dropout makes sentences longer
