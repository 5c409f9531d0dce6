"""BPE-dropout: a random segmentation each time a sentence is seen (Provilkov et al. 2020, arXiv 1910.13267).

The `tokenizers` package has a dropout of its own, but its random numbers can be neither seeded nor replayed.
Here they come from a numpy Generator, so that a resumed run sees the segmentations it would have seen.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data.errors import DataError
from data.text.tokenization import MAX_WORD, UNK_ID, TextTokenizer

_NO_MERGE = 2**62  # the rank of a pair that is no merge: after all that are
_GAPS_PER_BLOCK = 1024


class _Pretoken(NamedTuple):
    characters: list[int]  # ids before any merge; a run of unknown characters is one <unk>
    ids: list[int]  # ids after all merges, without dropout
    n_merges: int


class _Word(NamedTuple):
    """What stands between two spaces: one pre-token, or several where it holds punctuation or digits."""

    pretokens: list[_Pretoken]
    ids: list[int]
    n_merges: int


class BPEDropout:
    """Encodes like `tokenizer`, but each merge that could be applied is passed over with chance `dropout`.

    dropout: 0 gives `tokenizer.encode` exactly, 1 gives single characters; the paper uses 0.1. Words of more than
        MAX_WORD characters are merged in pieces of so many: merging takes the square of the length.

    Raises DataError if the tokenizer is not of kind "bpe", or dropout lies outside [0, 1].
    """

    def __init__(self, tokenizer: TextTokenizer, dropout: float):
        if tokenizer.kind != "bpe":
            raise DataError(f"BPE-dropout needs a bpe tokenizer, not {tokenizer.kind}")
        if not 0 <= dropout <= 1:
            raise DataError(f"BPE-dropout is a probability: {dropout} is not between 0 and 1")
        self.dropout = dropout
        self._backend = tokenizer.backend
        model = json.loads(tokenizer.to_json())["model"]
        self._vocab: dict[str, int] = model["vocab"]
        self._rank_of_pair: dict[tuple[int, int], int] = {}
        self._merged_id: list[int] = []  # by rank
        for rank, (left, right) in enumerate(model["merges"]):
            self._rank_of_pair[self._vocab[left], self._vocab[right]] = rank
            self._merged_id.append(self._vocab[left + right])
        self._words: dict[str, _Word] = {}  # every word met so far

    def encode(self, texts: Iterable[str], rng: np.random.Generator) -> list[list[int]]:
        """Ids of each text, without special tokens; fixed by `texts`, in their order, and the state of `rng`."""
        return list(self.encode_each(texts, rng))

    def encode_each(self, texts: Iterable[str], rng: np.random.Generator) -> Iterator[list[int]]:
        """The same, one after another."""
        normalise, words = self._backend.normalizer.normalize_str, self._words
        draws = _DropoutDraws(self.dropout, rng)
        for text in texts:
            ids: list[int] = []
            for surface in normalise(text).split(" "):
                word = words.get(surface) or self._add_word(surface)
                if word.n_merges <= draws.n_kept:  # no merge of this word is dropped
                    draws.n_kept -= word.n_merges
                    ids += word.ids
                    continue
                for pretoken in word.pretokens:
                    ids += self._merge(pretoken.characters, draws.next_is_dropped)
            yield ids

    def _add_word(self, surface: str) -> _Word:
        pretokens = []
        for text, _ in self._backend.pre_tokenizer.pre_tokenize_str(surface):
            characters: list[int] = []
            for character in text:
                character_id = self._vocab.get(character, UNK_ID)
                if character_id != UNK_ID or characters[-1:] != [UNK_ID]:
                    characters.append(character_id)
            for start in range(0, len(characters), MAX_WORD):
                piece = characters[start : start + MAX_WORD]
                ids = self._merge(piece, lambda: False)
                pretokens.append(_Pretoken(piece, ids, len(piece) - len(ids)))
        word = _Word(pretokens, [i for p in pretokens for i in p.ids], sum(p.n_merges for p in pretokens))
        self._words[surface] = word
        return word

    def _merge(self, characters: list[int], next_is_dropped: Callable[[], bool]) -> list[int]:
        """Algorithm 1 of the paper.

        At each step every applicable merge is dropped by a draw of its own, and the remaining one of lowest
        rank (leftmost among equals) is applied. Drawing in the order of rank and stopping at the first that
        is kept is the same in distribution, and spares the draws that cannot matter.
        """
        ids = characters.copy()
        rank_of_pair = self._rank_of_pair
        ranks = [rank_of_pair.get(pair, _NO_MERGE) for pair in pairwise(ids)]
        while True:
            for i in sorted(range(len(ranks)), key=ranks.__getitem__):  # stable: the leftmost of equals first
                if ranks[i] == _NO_MERGE:
                    return ids
                if not next_is_dropped():
                    break
            else:
                return ids
            ids[i : i + 2] = [self._merged_id[ranks.pop(i)]]
            if i > 0:
                ranks[i - 1] = rank_of_pair.get((ids[i - 1], ids[i]), _NO_MERGE)
            if i < len(ranks):
                ranks[i] = rank_of_pair.get((ids[i], ids[i + 1]), _NO_MERGE)


class _DropoutDraws:
    """Independent draws with chance `dropout`, held as the number of kept draws before the next dropped one.

    That number is geometric, so one random number stands for 1 / dropout draws, and a word that needs no more
    than `n_kept` draws can be taken from the cache whole.
    """

    def __init__(self, dropout: float, rng: np.random.Generator):
        self._gaps = _gaps(dropout, rng)
        self.n_kept: float = next(self._gaps)

    def next_is_dropped(self) -> bool:
        if self.n_kept > 0:
            self.n_kept -= 1
            return False
        self.n_kept = next(self._gaps)
        return True


def _gaps(dropout: float, rng: np.random.Generator) -> Iterator[float]:
    if dropout == 0:
        yield math.inf
    while True:
        yield from (rng.geometric(dropout, _GAPS_PER_BLOCK) - 1).tolist()
