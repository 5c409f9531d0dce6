"""Padded batches of sentence pairs, gathered from flat arrays of tokens that lie on the device.

A batch is one gather by (start, length) a side: no loop over sentences, and no copy to the device but the first.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID
from data.text.tokenized_text import TokenizedPairs, TokenizedText


class PairBatch(NamedTuple):
    """Padded token ids, int64, on the device."""

    source: Tensor  # (B, S), each row ends in EOS and padding
    target: Tensor  # (B, T), begins with BOS
    labels: Tensor  # (B, T), the target moved on by one: ends in EOS and padding

    def to(self, device: torch.device) -> "PairBatch":
        """The same on `device`; to a GPU from pinned memory, so that nobody waits for the copy."""
        if self.source.device.type == device.type:
            return self
        pinned = [tensor.pin_memory() if device.type == "cuda" else tensor for tensor in self]
        return PairBatch(*(tensor.to(device, non_blocking=True) for tensor in pinned))


class GatheredText:
    """The sentences of a `TokenizedText` on a device. On the CPU the arrays are shared, not copied."""

    def __init__(self, text: TokenizedText, device: torch.device):
        tokens = torch.from_numpy(text.tokens)
        # Without any token there would be nothing to gather the padding from.
        self.tokens = (tokens if len(tokens) else torch.tensor([PAD_ID], dtype=torch.int32)).to(device)
        self.starts = torch.from_numpy(text.starts).to(device)
        self.lengths = torch.from_numpy(text.lengths).to(device)

    def rows(self, sentences: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Sentences (B,) as rows filled up with padding, (B, width) int32, and where each ends, (B, width) bool."""
        starts = self.starts.index_select(0, sentences).unsqueeze(1)
        lengths = self.lengths.index_select(0, sentences).unsqueeze(1)
        places = torch.arange(width, device=sentences.device)
        # What a row reads beyond its sentence is not kept; beyond the last one there is nothing to read.
        wanted = (starts + places).clamp_(max=len(self.tokens) - 1)
        rows = self.tokens.index_select(0, wanted.view(-1)).view(wanted.shape)
        return rows.mul_(places < lengths), places == lengths  # PAD_ID is 0: to multiply is quicker than to fill


class GatheredPairs:
    """Sentence pairs on a device, of which batches are gathered there."""

    def __init__(self, pairs: TokenizedPairs, device: torch.device):
        self.device = device
        self._source = GatheredText(pairs.source, device)
        self._target = GatheredText(pairs.target, device)

    def batch(self, sentences: Tensor, source_width: int, target_width: int, n_counted: int) -> PairBatch:
        """The pairs `sentences` (B,), int64 on the device; labels of rows from `n_counted` on are all padding.

        The widths are in tokens: of the source with its EOS, of the target with EOS or BOS.
        """
        source, source_ends = self._source.rows(sentences, source_width)
        labels, target_ends = self._target.rows(sentences, target_width)
        target = torch.empty(labels.shape, dtype=torch.int64, device=labels.device)
        target[:, 0] = BOS_ID
        target[:, 1:] = labels[:, :-1]
        source.add_(source_ends, alpha=EOS_ID)
        labels.add_(target_ends, alpha=EOS_ID)
        if n_counted < len(sentences):
            labels[n_counted:] = PAD_ID
        return PairBatch(source.long(), target, labels.long())


def size_on_device(pairs: TokenizedPairs) -> int:
    """Bytes that the pairs take on a device."""
    return sum(a.nbytes for side in (pairs.source, pairs.target) for a in (side.tokens, side.starts, side.lengths))
