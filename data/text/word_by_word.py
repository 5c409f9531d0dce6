"""Tokenising text by its distinct words: no token reaches over a space, so a word is tokenised but once.

A corpus has a hundred times as many words as it has different ones, and the rest is arithmetic on arrays.
"""

import numpy as np
import pyarrow.compute

from data.text.text_column import BATCH, TextColumn
from data.text.tokenization import TextTokenizer
from data.text.tokenized_text import TokenizedText

MOST_WORDS = 1 << 20  # different words that are remembered: some 200 MB


def encode_column(tokenizer: TextTokenizer, sentences: TextColumn) -> TokenizedText:
    """The ids of each sentence, as `tokenizer.encode` gives them."""
    words = EncodedWords(tokenizer)
    tokens: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    for start in range(0, len(sentences), BATCH):
        encoded, n_tokens = words.encode(sentences[start : start + BATCH])
        tokens.append(encoded)
        lengths.append(n_tokens)
    offsets = np.zeros(len(sentences) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths) if lengths else [], out=offsets[1:])
    return TokenizedText.from_offsets(np.concatenate(tokens) if tokens else np.empty(0, np.int32), offsets)


class EncodedWords:
    """The ids of all words met so far, up to `most`; then it begins anew."""

    def __init__(self, tokenizer: TextTokenizer, most: int = MOST_WORDS):
        self._tokenizer, self._most = tokenizer, most
        self._forget()

    def _forget(self) -> None:
        self._number: dict[str, int] = {}
        self._tokens = np.empty(0, np.int32)  # of all words, one after another
        self._starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)

    def encode(self, sentences: TextColumn) -> tuple[np.ndarray, np.ndarray]:
        """The ids of N sentences, one after another, int32, and how many each has, (N,) int64."""
        if len(self._number) > self._most:
            self._forget()
        split = pyarrow.compute.split_pattern(sentences.array, " ")
        n_words = pyarrow.compute.list_value_length(split).to_numpy().astype(np.int64)
        words = split.flatten().dictionary_encode()
        numbers = self._numbers(words.dictionary.to_pylist())[words.indices.to_numpy()]
        lengths, starts = self._lengths[numbers], self._starts[numbers]
        ends = np.cumsum(lengths)
        n_tokens = np.diff(np.append(0, ends)[np.append(0, np.cumsum(n_words))])
        # Token j of the text is token j - (what stands before its word) of its word.
        tokens = self._tokens[np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())]
        return tokens, n_tokens

    def _numbers(self, words: list[str]) -> np.ndarray:
        new = [word for word in words if word not in self._number]
        if new:
            added = TokenizedText.from_lists(self._tokenizer.encode(new))
            self._number |= {word: len(self._starts) + i for i, word in enumerate(new)}
            self._starts = np.concatenate([self._starts, added.starts + len(self._tokens)])
            self._lengths = np.concatenate([self._lengths, added.lengths])
            self._tokens = np.concatenate([self._tokens, added.tokens])
        return np.array([self._number[word] for word in words], dtype=np.int64)
