"""Tokenised text as flat arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.cache import cached_arrays


@dataclass(frozen=True)
class TokenizedText:
    """N sentences in one array: sentence i is `tokens[offsets[i] : offsets[i + 1]]` (no special tokens)."""

    tokens: np.ndarray  # (total,) int32
    offsets: np.ndarray  # (N + 1,) int64

    @classmethod
    def from_lists(cls, sentences: Sequence[Sequence[int] | np.ndarray]) -> "TokenizedText":
        offsets = np.zeros(len(sentences) + 1, dtype=np.int64)
        np.cumsum([len(s) for s in sentences], out=offsets[1:])
        tokens = np.fromiter((t for s in sentences for t in s), dtype=np.int32, count=int(offsets[-1]))
        return cls(tokens, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, without BOS and EOS: (N,)."""
        return np.diff(self.offsets)

    def cut(self, max_len: int) -> "TokenizedText":
        """The first `max_len` tokens of each sentence."""
        if self.lengths.max(initial=0) <= max_len:
            return self
        return TokenizedText.from_lists([self[i][:max_len] for i in range(len(self))])

    def select(self, indices: Sequence[int] | np.ndarray) -> "TokenizedText":
        return TokenizedText.from_lists([self[int(i)] for i in indices])


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


def cached_tokens(key: str, build: Callable[[], Sequence[Sequence[int]]]) -> TokenizedText:
    """The sentences stored under `key`, built and stored on the first call."""

    def arrays() -> dict[str, np.ndarray]:
        text = TokenizedText.from_lists(build())
        return {"tokens": text.tokens, "offsets": text.offsets}

    stored = cached_arrays(key, ("tokens", "offsets"), arrays)
    return TokenizedText(stored["tokens"], stored["offsets"])
