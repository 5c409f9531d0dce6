"""Pairs of a source sentence and its translation: cleaning them, and splitting them by hash."""

import functools
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import numpy as np
from tokenizers import normalizers

from data.errors import DataError
from data.text.text_column import BATCH, TextColumn

MAX_LENGTH_RATIO = 3.0  # by default, a side may be so many times as long as its translation usually is
_UNEVEN = 1.5  # a corpus whose sides differ by more in their usual length is measured by that
_SHORT = 10_000  # characters
_AT_A_TIME = 4096  # sentences whose keys are made together: what these take stays in the processor's cache
_FREE_CHARACTERS = 20  # a sentence may be this much longer than its translation, whatever the ratio


@dataclass(frozen=True)
class ParallelText:
    """`targets[i]` is the translation of `sources[i]`. Lists of strings become columns."""

    sources: TextColumn
    targets: TextColumn

    def __init__(self, sources: Iterable[str], targets: Iterable[str]):
        object.__setattr__(self, "sources", TextColumn(sources))
        object.__setattr__(self, "targets", TextColumn(targets))
        if len(self.sources) != len(self.targets):
            raise ValueError(f"{len(self.sources)} sources, but {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.sources)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """(source, target) in order."""
        return zip(self.sources, self.targets, strict=True)

    def batches(self) -> Iterator[tuple[list[str], list[str]]]:
        """Some sources and their targets at a time, in order."""
        return zip(self.sources.batches(), self.targets.batches(), strict=True)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> "ParallelText":
        """The text of (source, target) pairs, of which it holds but some at a time."""
        remaining = iter(pairs)
        batches = iter(lambda: list(islice(remaining, BATCH)), [])
        return cls.joined([cls(*zip(*batch, strict=True)) for batch in batches])

    @classmethod
    def joined(cls, texts: Sequence["ParallelText"]) -> "ParallelText":
        """The pairs of all texts, one after another."""
        return cls(
            TextColumn.joined([text.sources for text in texts]), TextColumn.joined([text.targets for text in texts])
        )

    def select(self, indices: Sequence[int] | np.ndarray) -> "ParallelText":
        """The pairs of these numbers, in their order."""
        return ParallelText(self.sources.select(indices), self.targets.select(indices))

    def where(self, chosen: np.ndarray) -> "ParallelText":
        """The pairs for which `chosen` (N,) bool is true, in their order."""
        return self if chosen.all() else self.select(np.flatnonzero(chosen))


# Cleaning


def normalised(text: ParallelText) -> ParallelText:
    """Each sentence in Unicode's composed form (NFC), every run of white space one space, none at the ends.

    White space is what `str.split` takes for it, so that no sentence holds the end of a line of any kind.
    """
    return ParallelText(text.sources.map(_normalise), text.targets.map(_normalise))


def lowercased(text: ParallelText) -> ParallelText:
    """Each sentence in lower case, and normalised."""

    def lower(sentence: str) -> str:
        return _normalise(sentence.lower())  # lower-casing can decompose (İ)

    return ParallelText(text.sources.map(lower), text.targets.map(lower))


def without_empty(text: ParallelText) -> ParallelText:
    """The pairs with text on both sides."""
    return text.where((text.sources.n_characters() > 0) & (text.targets.n_characters() > 0))


def usual_length_ratio(text: ParallelText) -> float:
    """Characters of a target for each of its source: the corpus' median, or 1 where the sides are about as long.

    Scripts differ: an English sentence has three to five times the characters of its Chinese translation. Up
    to a median of 1.5, either way, a corpus counts as even.
    """
    sources, targets = text.sources.n_characters(), text.targets.n_characters()
    both = (sources > 0) & (targets > 0)
    median = float(np.median(targets[both] / sources[both])) if both.any() else 1.0
    return median if max(median, 1 / median) > _UNEVEN else 1.0


def clean(
    text: ParallelText, max_length_ratio: float = MAX_LENGTH_RATIO, usual_ratio: float = 1.0
) -> tuple[ParallelText, dict[str, int]]:
    """Drop the pairs that cannot be used from normalised text.

    These are dropped, each pair counted once, under the first reason that holds:

    - "empty": a side without text;
    - "length_ratio": the longer side has more than `max_length_ratio` × the characters of the shorter + 20.
      The allowance leaves short pairs alone ("Go." → "Va-t'en !"), whose ratios mean nothing. A target that
      usually has `usual_ratio` × the characters of its source is measured in these, the side in the terser
      script scaled up;
    - "duplicate": the same source and target as an earlier pair.

    Returns the kept pairs in their order and the counts "read", "empty", "length_ratio", "duplicate", "kept".
    """
    sources = text.sources.n_characters() * max(usual_ratio, 1.0)
    targets = text.targets.n_characters() * max(1 / usual_ratio, 1.0)
    shorter, longer = np.minimum(sources, targets), np.maximum(sources, targets)
    empty = shorter == 0
    uneven = ~empty & (longer > max_length_ratio * shorter + _FREE_CHARACTERS)
    chosen = np.flatnonzero(~empty & ~uneven)
    _, first = np.unique(_pair_hashes(text)[chosen], return_index=True)
    kept = text.select(chosen[np.sort(first)]) if len(first) < len(text) else text
    counts = {
        "read": len(text),
        "empty": int(empty.sum()),
        "length_ratio": int(uneven.sum()),
        "duplicate": len(chosen) - len(first),
        "kept": len(kept),
    }
    return kept, counts


def _pair_hashes(text: ParallelText) -> np.ndarray:
    """(N,) complex128 that are the same where both sides are: two numbers of 52 random bits each.

    Of 10 million pairs, two that differ have the same with a chance of 10^-18.
    """
    hashes = np.empty((len(text), 2), dtype=np.uint64)
    start = 0
    for sources, targets in text.batches():
        digests = b"".join(
            blake2b(f"{source}\n{target}".encode(), digest_size=16).digest()
            for source, target in zip(sources, targets, strict=True)
        )
        hashes[start : start + len(sources)] = np.frombuffer(digests, dtype=">u8").reshape(-1, 2)
        start += len(sources)
    return (hashes >> np.uint64(12)).astype(np.float64).view(np.complex128)[:, 0]


def _normalise(sentence: str) -> str:
    return " ".join(_composed(sentence).split())


def _composed(text: str) -> str:
    """The text in NFC."""
    if text.isascii():
        return text
    if len(text) <= _SHORT:
        return unicodedata.normalize("NFC", text)
    return normalizers.NFC().normalize_str(text)  # Python's takes the square of the length of a run of accents


# Splits


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
    sources, targets = key_hashes(text.sources), key_hashes(text.targets)
    position = sources / 2.0**64  # uniform in [0, 1)
    in_test = position < test_fraction
    in_valid = ~in_test & (position < test_fraction + valid_fraction)
    in_train = ~in_test & ~in_valid
    in_valid &= ~np.isin(targets, targets[in_test])
    in_train &= ~np.isin(targets, targets[in_test | in_valid])

    fractions = {"train": 1.0, "valid": valid_fraction, "test": test_fraction}
    chosen = {"train": in_train, "valid": in_valid, "test": in_test}
    counts = {name: int(members.sum()) for name, members in chosen.items()}
    for name, fraction in fractions.items():
        if fraction > 0 and counts[name] == 0:
            raise DataError(f"the {name} split of {len(text)} pairs is empty: give more text or other fractions")
    counts["target_in_heldout"] = len(text) - sum(counts.values())
    return text.where(in_train), text.where(in_valid), text.where(in_test), counts


def without_sentences_of(text: ParallelText, heldout: ParallelText) -> ParallelText:
    """The pairs of `text` that share no sentence with `heldout`, on either side, as `hashed_splits` compares."""
    shared = np.isin(key_hashes(text.sources), key_hashes(heldout.sources))
    shared |= np.isin(key_hashes(text.targets), key_hashes(heldout.targets))
    return text.where(~shared)


def key_hashes(sentences: TextColumn) -> np.ndarray:
    """A hash of each sentence's key, (N,) uint64: the same for sentences that count as the same."""
    hashes = np.empty(len(sentences), dtype=np.uint64)
    start = 0
    for batch in sentences.batches(_AT_A_TIME):
        digests = b"".join(blake2b(key.encode(), digest_size=8).digest() for key in sentence_keys(batch))
        hashes[start : start + len(batch)] = np.frombuffer(digests, dtype=">u8")
        start += len(batch)
    return hashes


def sentence_keys(sentences: Sequence[str]) -> list[str]:
    """Of each sentence what it has in common with those that differ in case, punctuation or white space alone."""
    if not sentences:
        return []
    folded = [" ".join(_composed(sentence.casefold()).split()) for sentence in sentences]
    # All at once by a table of the code points: ten times as fast as one by one.
    codes = np.frombuffer("\n".join(folded).encode("utf-32-le"), dtype="<u4")
    spaced = np.where(_is_punctuation()[codes], ord(" "), codes).astype("<u4").tobytes().decode("utf-32-le")
    # A sentence of punctuation alone is known by its punctuation.
    return [" ".join(key.split()) or whole for key, whole in zip(spaced.split("\n"), folded, strict=True)]


@functools.cache
def _is_punctuation() -> np.ndarray:
    """Of each code point: (sys.maxunicode + 1,) bool."""
    return np.array([unicodedata.category(chr(code))[0] == "P" for code in range(sys.maxunicode + 1)])
