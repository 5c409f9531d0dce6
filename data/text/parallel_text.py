"""Pairs of a source sentence and its translation: cleaning them, and splitting them by hash."""

import functools
import statistics
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from tokenizers import normalizers

from data.errors import DataError

MAX_LENGTH_RATIO = 3.0  # by default, a side may be so many times as long as its translation usually is
_UNEVEN = 1.5  # a corpus whose sides differ by more in their usual length is measured by that
_SHORT = 10_000  # characters
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

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[str, str]]) -> "ParallelText":
        """The text of (source, target) pairs."""
        return cls([source for source, _ in pairs], [target for _, target in pairs])

    def select(self, indices: Sequence[int]) -> "ParallelText":
        """The pairs of these numbers, in their order."""
        return ParallelText([self.sources[i] for i in indices], [self.targets[i] for i in indices])


# Cleaning


def normalised(text: ParallelText) -> ParallelText:
    """Each sentence in Unicode's composed form (NFC), every run of white space one space, none at the ends.

    White space is what `str.split` takes for it, so that no sentence holds the end of a line of any kind.
    """
    return ParallelText([_normalise(s) for s in text.sources], [_normalise(t) for t in text.targets])


def without_empty(text: ParallelText) -> ParallelText:
    """The pairs with text on both sides."""
    return ParallelText.from_pairs([(s, t) for s, t in text.pairs() if s and t])


def usual_length_ratio(text: ParallelText) -> float:
    """Characters of a target for each of its source: the corpus' median, or 1 where the sides are about as long.

    Scripts differ: an English sentence has three to five times the characters of its Chinese translation. Up
    to a median of 1.5, either way, a corpus counts as even.
    """
    ratios = [len(t) / len(s) for s, t in text.pairs() if s and t]
    median = statistics.median(ratios) if ratios else 1.0
    return median if max(median, 1 / median) > _UNEVEN else 1.0


def clean(
    text: ParallelText, max_length_ratio: float = MAX_LENGTH_RATIO, usual_ratio: float = 1.0
) -> tuple[ParallelText, dict[str, int]]:
    """Normalise each sentence as `normalised` does, and drop the pairs that cannot be used.

    These are dropped, each pair counted once, under the first reason that holds:

    - "empty": a side without text;
    - "length_ratio": the longer side has more than `max_length_ratio` × the characters of the shorter + 20.
      The allowance leaves short pairs alone ("Go." → "Va-t'en !"), whose ratios mean nothing. A target that
      usually has `usual_ratio` × the characters of its source is measured in these, the side in the terser
      script scaled up;
    - "duplicate": the same source and target as an earlier pair.

    Returns the kept pairs in their order and the counts "read", "empty", "length_ratio", "duplicate", "kept".
    """
    source_scale, target_scale = max(usual_ratio, 1.0), max(1 / usual_ratio, 1.0)
    counts = dict.fromkeys(("read", "empty", "length_ratio", "duplicate", "kept"), 0)
    kept: dict[tuple[str, str], None] = {}  # an ordered set
    for pair in normalised(text).pairs():
        shorter, longer = sorted((len(pair[0]) * source_scale, len(pair[1]) * target_scale))
        if shorter == 0:
            counts["empty"] += 1
        elif longer > max_length_ratio * shorter + _FREE_CHARACTERS:
            counts["length_ratio"] += 1
        elif pair in kept:
            counts["duplicate"] += 1
        else:
            kept[pair] = None
    counts["read"], counts["kept"] = len(text), len(kept)
    return ParallelText.from_pairs(list(kept)), counts


def _normalise(sentence: str) -> str:
    return " ".join(_composed(sentence).split())


def _composed(text: str) -> str:
    """The text in NFC."""
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
    train, valid, test = [], [], []  # of (target key, pair)
    for pair in text.pairs():
        source_key, target_key = map(sentence_key, pair)
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
    train_text, valid_text, test_text = (
        ParallelText.from_pairs([pair for _, pair in split]) for split in (train, valid, test)
    )
    return train_text, valid_text, test_text, counts


def without_sentences_of(text: ParallelText, heldout: ParallelText) -> ParallelText:
    """The pairs of `text` that share no sentence with `heldout`, on either side, as `hashed_splits` compares."""
    sources = {sentence_key(sentence) for sentence in heldout.sources}
    targets = {sentence_key(sentence) for sentence in heldout.targets}
    return ParallelText.from_pairs(
        [(s, t) for s, t in text.pairs() if sentence_key(s) not in sources and sentence_key(t) not in targets]
    )


def sentence_key(sentence: str) -> str:
    """What two sentences that differ in case, punctuation or white space alone have in common."""
    folded = _composed(sentence.casefold())
    # A sentence of punctuation alone is known by its punctuation.
    return " ".join(folded.translate(_punctuation_to_space()).split()) or " ".join(folded.split())


@functools.cache
def _punctuation_to_space() -> dict[int, str]:
    return {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "P"}
