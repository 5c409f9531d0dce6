"""Dynamic batching of sentence pairs: which sentences make up each update, and how they are padded.

An update is planned for all processes at once, from (seed, epoch) alone: `plan_epoch` gives the same updates
in every process, and `Update.micro_batch` gives each of its equal parts. So the number of target tokens of an
update is known everywhere before it starts, without any communication, and one process with accumulation 2,
two processes, and one process with the doubled budget train on the same updates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from data.errors import DataError
from data.seeding import Stream, seeded_rng
from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID
from data.text.tokenized_text import TokenizedPairs, TokenizedText

Batching = Literal["padded", "sorted", "bucketed"]
ROW_MULTIPLE = 8  # full batches have a multiple of this many rows: it suits tensor cores, and 2, 4, 8 ways


@dataclass(frozen=True)
class Shape:
    """Padded lengths in tokens: `source` counts EOS, `target` counts EOS (labels) or BOS (inputs)."""

    source: int
    target: int

    @property
    def cost(self) -> int:
        """What a row of this shape takes from the token budget: the longer side, padding included."""
        return max(self.source, self.target)


class PairBatch(NamedTuple):
    """Padded token ids, int64, on the device."""

    source: torch.Tensor  # (B, S), each row ends in EOS and padding
    target: torch.Tensor  # (B, T), begins with BOS
    labels: torch.Tensor  # (B, T), the target moved on by one: ends in EOS and padding


@dataclass(frozen=True)
class Update:
    """The sentences of one optimizer update, over all processes and micro-batches."""

    pairs: TokenizedPairs  # all of the epoch's
    sentences: np.ndarray  # (rows,) int64 indices into the pairs
    shape: Shape
    target_tokens: int  # real ones, EOS included: what the loss sum is divided by

    def micro_batch(self, part: int, n_parts: int, device: torch.device) -> PairBatch:
        """Part `part` of n_parts of equal size, padded. All of them together predict `target_tokens` labels."""
        sentences, n_counted = self.share(part, n_parts)
        return collate(self.pairs, sentences, self.shape, n_counted, device)

    def share(self, part: int, n_parts: int) -> tuple[np.ndarray, int]:
        """The sentences of a part, and how many of them count.

        Where the rows do not divide evenly, sentences are repeated to fill the last rows of a part; those
        are not counted in the loss. So no part is empty and every process has the same work.
        """
        rows = math.ceil(len(self.sentences) / n_parts)
        own = self.sentences[part * rows : (part + 1) * rows]
        filler = np.resize(self.sentences, rows - len(own))
        return np.concatenate([own, filler]), len(own)


def make_buckets(
    source_lengths: np.ndarray, target_lengths: np.ndarray, max_buckets: int = 48, padding_goal: float = 0.04
) -> tuple[list[Shape], np.ndarray]:
    """A small set of shapes that pads little: (shapes, the bucket of each sentence (N,)).

    Begins with one shape for all and splits, again and again, the bucket and side at the length that saves
    the most padding, until the padding is under `padding_goal` or there are `max_buckets` shapes.
    """

    def shape_of(members: np.ndarray) -> Shape:
        return Shape(int(source_lengths[members].max()), int(target_lengths[members].max()))

    def best_split(members: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """(tokens of padding saved, shorter part, longer part)."""
        shape, best = shape_of(members), (0, members, members[:0])
        for own, other, own_max, other_max in (
            (source_lengths[members], target_lengths[members], shape.source, shape.target),
            (target_lengths[members], source_lengths[members], shape.target, shape.source),
        ):
            order = np.argsort(own, kind="stable")
            below = np.arange(1, len(members))  # sentences in the shorter part, for every cut
            shorter_other = np.maximum.accumulate(other[order])[:-1]
            longer_other = np.maximum.accumulate(other[order][::-1])[::-1][1:]
            saved = below * (own_max - own[order][:-1] + other_max - shorter_other)
            saved += (len(members) - below) * (other_max - longer_other)
            saved[own[order][:-1] == own[order][1:]] = 0  # equal lengths stay together
            if len(saved) and saved.max() > best[0]:
                cut = int(saved.argmax()) + 1
                best = (int(saved.max()), members[order[:cut]], members[order[cut:]])
        return best

    splits = [best_split(np.arange(len(source_lengths)))]
    leaves = [np.arange(len(source_lengths))]
    real = int(source_lengths.sum() + target_lengths.sum())
    padding = sum(len(m) * (s.source + s.target) for m, s in ((m, shape_of(m)) for m in leaves)) - real
    while len(leaves) < max_buckets and padding > padding_goal * (real + padding):
        widest = max(range(len(leaves)), key=lambda i: splits[i][0])
        saved, shorter, longer = splits[widest]
        if saved == 0:
            break
        leaves[widest : widest + 1] = [shorter, longer]
        splits[widest : widest + 1] = [best_split(shorter), best_split(longer)]
        padding -= saved
    leaves.sort(key=lambda m: (shape_of(m).cost, shape_of(m).source, shape_of(m).target))
    bucket_of = np.empty(len(source_lengths), dtype=np.int64)
    for i, members in enumerate(leaves):
        bucket_of[members] = i
    return [shape_of(m) for m in leaves], bucket_of


class BatchPlanner:
    """Plans each epoch's updates over tokenized pairs.

    `max_tokens` bounds rows x longer side, padding included, of a micro-batch in one process; `n_parts` is
    processes x accumulation steps, so an update holds up to `max_tokens * n_parts`.

    A sentence of more than `max_tokens` is an error; where they may be longer (`allow_longer`, "sorted" alone),
    such a sentence makes an update by itself.

    - "padded": shuffled, every sentence padded to the longest of the corpus.
    - "sorted": by length, in the same order every epoch.
    - "bucketed": shuffled within buckets of like length, and the updates shuffled; every epoch has the same
      number of updates of each shape. What does not fill an update of its bucket is put together with the
      neighbouring buckets' rest.
    """

    def __init__(
        self,
        pairs: TokenizedPairs,
        max_tokens: int,
        n_parts: int = 1,
        batching: Batching = "bucketed",
        seed: int = 0,
        max_buckets: int = 48,
        allow_longer: bool = False,
    ):
        if len(pairs) == 0:
            raise DataError("no sentence pair is left to train on: check --max_len and the training files")
        self.pairs = pairs
        self.source_lengths = pairs.source.lengths + 1  # + EOS
        self.target_lengths = pairs.target.lengths + 1
        self.budget = max_tokens * n_parts
        self.n_parts = n_parts
        self.batching = batching
        self.seed = seed
        longest = int(max(self.source_lengths.max(), self.target_lengths.max()))
        if max_tokens < longest and not allow_longer:
            raise DataError(
                f"--max_tokens {max_tokens} is smaller than the longest training sentence "
                f"({longest} tokens with its end mark): raise it, or lower --max_len below {max_tokens}"
            )
        whole = Shape(int(self.source_lengths.max()), int(self.target_lengths.max()))
        if batching == "bucketed":
            self.shapes, self.bucket_of = make_buckets(self.source_lengths, self.target_lengths, max_buckets)
        else:
            self.shapes, self.bucket_of = [whole], np.zeros(len(pairs), dtype=np.int64)
        self.members = [np.flatnonzero(self.bucket_of == i) for i in range(len(self.shapes))]

    def rows_that_fit(self, shape: Shape) -> int:
        """Rows of an update of this shape, a multiple of ROW_MULTIPLE and of the parts where that fits."""
        rows = self.budget // shape.cost
        for multiple in (math.lcm(ROW_MULTIPLE, self.n_parts), self.n_parts):
            if rows >= multiple:
                return rows - rows % multiple
        return rows

    def plan_epoch(self, epoch: int) -> list[Update]:
        """The updates of an epoch, each sentence exactly once. Depends on the seed and the epoch alone."""
        rng = seeded_rng(Stream.BATCH_ORDER, self.seed, epoch)
        if self.batching == "sorted":
            return [self._update(rows) for rows in self._cut_by_budget(self._by_length())]
        if self.batching == "padded":
            order, shape = rng.permutation(len(self.source_lengths)), self.shapes[0]
            rows = self.rows_that_fit(shape)
            return [self._update(order[i : i + rows], shape) for i in range(0, len(order), rows)]

        updates, rest = [], []
        for shape, members in zip(self.shapes, self.members, strict=True):
            order, rows = rng.permutation(members), self.rows_that_fit(shape)
            n_full = len(order) // rows
            updates += [self._update(order[i * rows : (i + 1) * rows], shape) for i in range(n_full)]
            rest.append(order[n_full * rows :])
        updates += self._updates_of_rest(np.concatenate(rest))
        return [updates[i] for i in rng.permutation(len(updates))]

    def _by_length(self) -> np.ndarray:
        return np.lexsort((self.source_lengths, self.target_lengths))

    def _cut_by_budget(self, order: np.ndarray) -> Iterator[np.ndarray]:
        start = longest = 0
        for i, sentence in enumerate(order):
            cost = max(longest, self.source_lengths[sentence], self.target_lengths[sentence])
            if (i - start + 1) * cost > self.budget and i > start:
                yield order[start:i]
                start, cost = i, max(self.source_lengths[sentence], self.target_lengths[sentence])
            longest = cost
        yield order[start:]

    def _updates_of_rest(self, rest: np.ndarray) -> list[Update]:
        """Updates of sentences in bucket order; shaped by their buckets, so alike in every epoch."""
        updates, start = [], 0
        while start < len(rest):
            end, shape = start, Shape(0, 0)
            while end < len(rest):
                own = self.shapes[self.bucket_of[rest[end]]]
                wider = Shape(max(shape.source, own.source), max(shape.target, own.target))
                if (end - start + 1) * wider.cost > self.budget:
                    break
                shape, end = wider, end + 1
            updates.append(self._update(rest[start:end], shape))
            start = end
        return updates

    def _update(self, sentences: np.ndarray, shape: Shape | None = None) -> Update:
        if shape is None:
            shape = Shape(int(self.source_lengths[sentences].max()), int(self.target_lengths[sentences].max()))
        return Update(self.pairs, sentences, shape, int(self.target_lengths[sentences].sum()))

    def real_and_padding(self, updates: list[Update]) -> tuple[np.ndarray, np.ndarray]:
        """Real and padding tokens of each update, both sides together, rows that fill a part being padding."""
        rows = [self.n_parts * math.ceil(len(update.sentences) / self.n_parts) for update in updates]
        padded = [n * (u.shape.source + u.shape.target) for n, u in zip(rows, updates, strict=True)]
        both = self.source_lengths + self.target_lengths
        real = np.array([both[update.sentences].sum() for update in updates])
        return real, np.array(padded) - real

    def padding_share(self, updates: list[Update]) -> float:
        """Padding tokens over all tokens in the batches as the model sees them."""
        real, padding = self.real_and_padding(updates)
        return float(padding.sum() / (real.sum() + padding.sum()))


def pad_rows(text: TokenizedText, sentences: np.ndarray, width: int) -> np.ndarray:
    """Rows of tokens followed by EOS and padding: (B, width) int64."""
    rows = np.full((len(sentences), width), PAD_ID, dtype=np.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        tokens = text[sentence]
        row[: len(tokens)] = tokens
        row[len(tokens)] = EOS_ID
    return rows


def to_device(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(rows)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def collate(
    pairs: TokenizedPairs, sentences: np.ndarray, shape: Shape, counted: int, device: torch.device
) -> PairBatch:
    """The padded batch of the given sentences; labels of rows from `counted` on are all padding."""
    source = pad_rows(pairs.source, sentences, shape.source)
    labels = pad_rows(pairs.target, sentences, shape.target)
    inputs = np.full_like(labels, PAD_ID)
    inputs[:, 0] = BOS_ID
    inputs[:, 1:] = np.where(labels[:, :-1] == EOS_ID, PAD_ID, labels[:, :-1])
    labels[counted:] = PAD_ID
    return PairBatch(to_device(source, device), to_device(inputs, device), to_device(labels, device))
