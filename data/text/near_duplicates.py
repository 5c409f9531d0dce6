"""Sentences that are one word away from a sentence of the training text."""

from collections.abc import Sequence

import numpy as np

from data.text.parallel_text import sentence_keys
from data.text.writing_systems import units

_CHUNK = 100_000  # training sentences whose variants are held at a time
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))
_OTHER = 0  # id of every word that no sentence in question has
_ANY = 1  # id of the wildcard


def near_duplicates(sentences: Sequence[str], training: Sequence[str]) -> np.ndarray:
    """Which sentences have a training sentence at one word's distance or none: (N,) bool.

    At one word's distance: one word substituted, inserted or deleted, with case, punctuation and white space
    left out of account as where the text is split. In scripts without spaces a word is a character.

    Time and memory are linear in the words: each sentence is known by a polynomial hash (modulo 2^64) over its
    words, and that of a sentence without its i-th word, or with a wildcard there, follows from sums up to i.
    Two sentences are one substitution apart where a wildcard in each makes them equal, and one insertion or
    deletion apart where one without a word equals the other whole.
    """
    vocabulary: dict[str, int] = {}
    chosen = [
        [vocabulary.setdefault(word, len(vocabulary) + 2) for word in units(key)]
        for key in sentence_keys(sentences)
    ]
    values = np.random.default_rng(0).integers(2**64, size=len(vocabulary) + 2, dtype=np.uint64)
    whole, shorter, wildcard, owner = _variants(chosen, values)

    near = np.zeros(len(chosen), bool)
    for start in range(0, len(training), _CHUNK):
        others = []
        for key in sentence_keys(training[start : start + _CHUNK]):
            ids = [vocabulary.get(word, _OTHER) for word in units(key)]
            if ids.count(_OTHER) <= 1:  # with two other words it is two words away from all
                others.append(ids)
        other_whole, other_shorter, other_wildcard, _ = _variants(others, values)
        near |= np.isin(whole, other_whole) | np.isin(whole, other_shorter)
        near[owner[np.isin(shorter, other_whole) | np.isin(wildcard, other_wildcard)]] = True
    return near


def _variants(
    sentences: list[list[int]], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Hashes of N sentences of W words in all: whole (N,); without, and with a wildcard at, each word (W,) both;
    and the sentence of each word (W,).

    values: a random number for each word's id.
    """
    lengths = np.array([len(ids) for ids in sentences], np.int64)
    ids = np.fromiter((i for sentence in sentences for i in sentence), np.int64, int(lengths.sum()))
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(sentences)), lengths)
    positions = np.arange(len(ids)) - starts[owner]
    powers = np.full(int(lengths.max(initial=0)) + 1, _BASE)
    powers[0] = 1
    powers = np.cumprod(powers, dtype=np.uint64)

    terms = values[ids] * powers[positions]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    first = sums[starts[owner]]
    before = sums[:-1] - first  # of the words before each
    after = sums[starts[owner] + lengths[owner]] - sums[1:]  # and after it
    whole = sums[starts + lengths] - sums[starts]
    return whole, before + after * _INVERSE, before + after + values[_ANY] * powers[positions], owner
