"""Sentences in an Arrow column: two buffers, in memory or mapped from a file, instead of a Python object each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow
import pyarrow.compute

BATCH = 1 << 16  # sentences that are Python strings at a time


class TextColumn(Sequence[str]):
    """N sentences. A slice is a column too; equal to any sequence of the same sentences."""

    def __init__(self, sentences: "Iterable[str] | pyarrow.LargeStringArray"):
        if isinstance(sentences, pyarrow.LargeStringArray):
            self.array = sentences
        elif isinstance(sentences, TextColumn):
            self.array = sentences.array
        else:
            remaining = iter(sentences)
            batches = iter(lambda: list(islice(remaining, BATCH)), [])
            self.array = _concatenated([_array(batch) for batch in batches])

    @classmethod
    def from_buffers(cls, text: np.ndarray, offsets: np.ndarray) -> "TextColumn":
        """UTF-8 `text` (bytes,) uint8, of which sentence i is what lies from `offsets[i]` to `offsets[i + 1]`.

        `offsets` (N + 1,) int64. Nothing is copied.
        """
        buffers = pyarrow.py_buffer(offsets), pyarrow.py_buffer(text)
        return cls(pyarrow.LargeStringArray.from_buffers(len(offsets) - 1, *buffers))

    @classmethod
    def of_arrow(cls, column: "pyarrow.ChunkedArray") -> "TextColumn":
        """A column of strings of a table; a missing one is empty."""
        filled = pyarrow.compute.fill_null(column.cast(pyarrow.large_string()), "")
        return cls(_concatenated(filled.chunks))

    @classmethod
    def joined(cls, columns: "Sequence[TextColumn]") -> "TextColumn":
        """The sentences of all columns, one after another."""
        return cls(_concatenated([column.array for column in columns]))

    def buffers(self) -> tuple[np.ndarray, np.ndarray]:
        """`text` and `offsets` as `from_buffers` takes them."""
        _, offsets_buffer, text_buffer = self.array.buffers()
        if len(self) == 0:
            return np.empty(0, np.uint8), np.zeros(1, np.int64)
        first = self.array.offset
        offsets = np.frombuffer(offsets_buffer, np.int64)[first : first + len(self) + 1]
        text = np.frombuffer(text_buffer, np.uint8) if text_buffer else np.empty(0, np.uint8)
        return text[offsets[0] : offsets[-1]], offsets - offsets[0]

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "TextColumn": ...
    def __getitem__(self, index: int | slice) -> "str | TextColumn":
        if isinstance(index, slice):
            chosen = range(*index.indices(len(self)))
            if chosen.step == 1:
                return TextColumn(self.array.slice(chosen.start, len(chosen)))
            return self.select(chosen)
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.array[index % len(self)].as_py()

    def __iter__(self) -> Iterator[str]:
        for batch in self.batches():
            yield from batch

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, TextColumn):
            return self.array.equals(other.array)
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"TextColumn([{shown}{', ..' if len(self) > 3 else ''}], {len(self):,} sentences)"

    def batches(self, size: int = BATCH) -> Iterator[list[str]]:
        """The sentences in their order, as lists of at most `size`."""
        for start in range(0, len(self), size):
            yield self.array.slice(start, size).to_numpy(zero_copy_only=False).tolist()

    def map(self, function: Callable[[str], str]) -> "TextColumn":
        """`function` of each sentence."""
        arrays = []
        is_changed = False
        for start, batch in zip(range(0, len(self), BATCH), self.batches(BATCH), strict=True):
            changed = list(map(function, batch))
            arrays.append(self.array.slice(start, BATCH) if changed == batch else _array(changed))
            is_changed |= changed != batch
        return TextColumn(_concatenated(arrays)) if is_changed else self

    def select(self, indices: Sequence[int] | np.ndarray) -> "TextColumn":
        """The sentences of these numbers, in their order."""
        return TextColumn(self.array.take(pyarrow.array(np.asarray(indices, dtype=np.int64))))

    def n_characters(self) -> np.ndarray:
        """Characters of each sentence: (N,) int64."""
        lengths = pyarrow.compute.utf8_length(self.array)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _array(sentences: Sequence[str]) -> "pyarrow.LargeStringArray":
    return pyarrow.array(sentences, type=pyarrow.large_string())


def _concatenated(arrays: "list[pyarrow.LargeStringArray]") -> "pyarrow.LargeStringArray":
    if len(arrays) == 1:
        return arrays[0]
    return pyarrow.concat_arrays(arrays) if arrays else _array([])
