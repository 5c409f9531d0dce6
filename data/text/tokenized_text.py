"""Tokenised text as flat arrays."""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.cache import cached_arrays


@dataclass(frozen=True)
class TokenizedText:
    """N sentences in one array: sentence i is the `lengths[i]` tokens from `starts[i]` on (no special tokens).

    Texts that are parts of another one (`cut`, `select`) share its tokens.
    """

    tokens: np.ndarray  # (total,) int32
    starts: np.ndarray  # (N,) int64
    lengths: np.ndarray  # (N,) int64

    @classmethod
    def from_offsets(cls, tokens: np.ndarray, offsets: np.ndarray) -> "TokenizedText":
        """Sentences that follow each other: i is `tokens[offsets[i] : offsets[i + 1]]`; `offsets` (N + 1,)."""
        return cls(tokens, offsets[:-1], np.diff(offsets))

    @classmethod
    def from_lists(cls, sentences: Iterable[Sequence[int]]) -> "TokenizedText":
        """Sentences of token ids."""
        tokens, offsets = array("i"), array("q", [0])
        for sentence in sentences:
            tokens.extend(sentence)
            offsets.append(len(tokens))
        return cls.from_offsets(np.array(tokens, dtype=np.int32), np.array(offsets, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]

    def own_tokens(self) -> np.ndarray:
        """The tokens of these sentences alone, in the order of `tokens`: (n,) int32. Sentences do not overlap."""
        begun = np.zeros(len(self.tokens) + 1, dtype=np.int8)
        has_tokens = self.lengths > 0
        begun[self.starts[has_tokens]] += 1
        begun[(self.starts + self.lengths)[has_tokens]] -= 1
        return self.tokens[np.cumsum(begun[:-1], dtype=np.int8) > 0]

    def cut(self, max_len: int) -> "TokenizedText":
        """The first `max_len` tokens of each sentence."""
        return TokenizedText(self.tokens, self.starts, np.minimum(self.lengths, max_len))

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedText":
        """The sentences of these numbers, in their order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return TokenizedText(self.tokens, self.starts[chosen], self.lengths[chosen])


@dataclass(frozen=True)
class TokenizedPairs:
    """Sentence i of the source belongs to sentence i of the target."""

    source: TokenizedText
    target: TokenizedText

    def __len__(self) -> int:
        return len(self.source)

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedPairs":
        """The pairs of these numbers, in their order."""
        return TokenizedPairs(self.source.select(indices), self.target.select(indices))


def cached_tokens(key: str, build: Callable[[], TokenizedText]) -> TokenizedText:
    """The text stored under `key`, built and stored on the first call, and mapped into memory."""

    def arrays() -> dict[str, np.ndarray]:
        text = build()
        return {"tokens": text.tokens, "offsets": np.append(text.starts, len(text.tokens))}

    stored = cached_arrays(key, ("tokens", "offsets"), arrays)
    return TokenizedText.from_offsets(stored["tokens"], stored["offsets"])
