"""Dynamic batching of sentence pairs: which sentences make up each update, and how they are padded.

An update is planned for all processes at once, from (seed, epoch) alone: `plan_epoch` gives the same updates
in every process, and `Update.micro_batch` gives each of its equal parts. So the number of target tokens of an
update is known everywhere before it starts, without any communication, and one process with accumulation 2 and
two processes train on the same updates. So does one process with the doubled budget, where updates have at least
`ROW_MULTIPLE` rows.

The sizes and shapes of an epoch's updates are the same in every epoch, and settled once. An epoch is then an order
of the sentences, one array on the device, of which each update is a slice.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.prefetching import Prefetched, room_on
from data.seeding import Stream, seeded_rng
from data.text.padded_batches import GatheredPairs, PairBatch, size_on_device
from data.text.tokenized_text import TokenizedPairs

Batching = Literal["padded", "sorted", "bucketed"]
CPU = torch.device("cpu")
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


@dataclass(frozen=True)
class Update:
    """The sentences of one optimizer update, over all processes and micro-batches."""

    pairs: GatheredPairs  # all of the epoch's
    sentences: Tensor  # (rows,) int64 numbers of pairs, on their device
    shape: Shape
    target_tokens: int  # real ones, EOS included: what the loss sum is divided by

    def micro_batch(self, part: int, n_parts: int, device: torch.device) -> PairBatch:
        """Part `part` of n_parts of equal size, padded. All of them together predict `target_tokens` labels."""
        sentences, n_counted = self.share(part, n_parts)
        return self.pairs.batch(sentences, self.shape.source, self.shape.target, n_counted).to(device)

    def loaded(self, parts: Iterable[int], n_parts: int, device: torch.device) -> "LoadedUpdate":
        """The same with the batches of some of its `n_parts` parts on `device` already."""
        batches = {part: self.micro_batch(part, n_parts, device) for part in parts}
        return LoadedUpdate(self.pairs, self.sentences, self.shape, self.target_tokens, batches)

    def share(self, part: int, n_parts: int) -> tuple[Tensor, int]:
        """The sentences of a part, and how many of them count.

        Where the rows do not divide evenly, sentences are repeated to fill the last rows of a part; those
        are not counted in the loss. So no part is empty and every process has the same work.
        """
        rows = math.ceil(len(self.sentences) / n_parts)
        own = self.sentences[part * rows : (part + 1) * rows]
        n_missing = rows - len(own)
        return (torch.cat([own, self.sentences[:n_missing]]) if n_missing else own), len(own)


@dataclass(frozen=True)
class LoadedUpdate(Update):
    """An update whose batches lie on the device."""

    batches: dict[int, PairBatch]  # of this process's parts

    def micro_batch(self, part: int, n_parts: int, device: torch.device) -> PairBatch:
        """Part `part`, one of those that were loaded."""
        return self.batches[part]


@dataclass(frozen=True)
class Layout:
    """How an order of sentences is cut into U updates: i has those at `starts[i]` up to `starts[i] + sizes[i]`."""

    starts: np.ndarray  # (U,) int64, rising
    sizes: np.ndarray  # (U,) int64
    shapes: list[Shape]  # of each update

    @classmethod
    def of_sizes(cls, sizes: Sequence[int] | np.ndarray, shapes: list[Shape]) -> "Layout":
        """Updates that follow each other without a gap."""
        counts = np.asarray(sizes, dtype=np.int64)
        return cls(np.cumsum(counts) - counts, counts, shapes)


class PlannedEpoch(Sequence[Update]):
    """The updates of an epoch, each made when it is asked for, which takes microseconds.

    They are the layout's, cut from `order` (N,) int64 and put into the order `places` (U,) int64.
    """

    def __init__(
        self, pairs: GatheredPairs, order: np.ndarray, layout: Layout, places: np.ndarray, target_tokens: np.ndarray
    ):
        self._pairs = pairs
        self._order = torch.from_numpy(order).to(pairs.device)
        # As lists: an update takes a number of each, and numpy is slow where numbers are asked for one by one.
        self._starts = layout.starts[places].tolist()
        self._ends = (layout.starts + layout.sizes)[places].tolist()
        self._target_tokens = target_tokens[places].tolist()
        self._shapes = [layout.shapes[place] for place in places.tolist()]

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Update: ...
    @overload
    def __getitem__(self, index: slice) -> list[Update]: ...
    def __getitem__(self, index: int | slice) -> Update | list[Update]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        sentences = self._order[self._starts[index] : self._ends[index]]
        return Update(self._pairs, sentences, self._shapes[index], self._target_tokens[index])


def make_buckets(
    source_lengths: np.ndarray, target_lengths: np.ndarray, max_buckets: int = 48, padding_goal: float = 0.04
) -> tuple[list[Shape], np.ndarray]:
    """A small set of shapes that pads little: (shapes, the bucket of each sentence (N,)).

    Begins with one shape for all and splits, again and again, the bucket and side at the length that saves
    the most padding, until the padding is under `padding_goal` or there are `max_buckets` shapes.
    """
    # Pairs of the same two lengths stay together, so that it is these that are split: few, however many pairs.
    stride = int(target_lengths.max()) + 1
    kinds, kind_of, counts = np.unique(
        source_lengths.astype(np.int64) * stride + target_lengths, return_inverse=True, return_counts=True
    )
    source, target = np.divmod(kinds, stride)

    def shape_of(members: np.ndarray) -> Shape:
        return Shape(int(source[members].max()), int(target[members].max()))

    def best_split(members: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
        """(tokens of padding saved, shorter part, longer part)."""
        shape, best = shape_of(members), (0, members, members[:0])
        n_sentences = counts[members].sum()
        for own, other, own_max, other_max in (
            (source[members], target[members], shape.source, shape.target),
            (target[members], source[members], shape.target, shape.source),
        ):
            order = np.argsort(own, kind="stable")
            below = np.cumsum(counts[members][order])[:-1]  # sentences in the shorter part, for every cut
            shorter_other = np.maximum.accumulate(other[order])[:-1]
            longer_other = np.maximum.accumulate(other[order][::-1])[::-1][1:]
            saved = below * (own_max - own[order][:-1] + other_max - shorter_other)
            saved += (n_sentences - below) * (other_max - longer_other)
            saved[own[order][:-1] == own[order][1:]] = 0  # equal lengths stay together
            if len(saved) and saved.max() > best[0]:
                cut = int(saved.argmax()) + 1
                best = (int(saved.max()), members[order[:cut]], members[order[cut:]])
        return best

    leaves = [np.arange(len(kinds))]
    splits = [best_split(leaves[0])]
    real = int(source_lengths.sum() + target_lengths.sum())
    whole = shape_of(leaves[0])
    padding = len(source_lengths) * (whole.source + whole.target) - real
    while len(leaves) < max_buckets and padding > padding_goal * (real + padding):
        widest = max(range(len(leaves)), key=lambda i: splits[i][0])
        saved, shorter, longer = splits[widest]
        if saved == 0:
            break
        leaves[widest : widest + 1] = [shorter, longer]
        splits[widest : widest + 1] = [best_split(shorter), best_split(longer)]
        padding -= saved
    leaves.sort(key=lambda m: (shape_of(m).cost, shape_of(m).source, shape_of(m).target))
    bucket_of_kind = np.empty(len(kinds), dtype=np.int64)
    for i, members in enumerate(leaves):
        bucket_of_kind[members] = i
    return [shape_of(m) for m in leaves], bucket_of_kind[kind_of]


class BatchPlanner:
    """Plans each epoch's updates over tokenized pairs, which it puts on `device`, where batches are gathered.

    Where there is no room for them, they stay in the memory of the host, and `loaded` has a thread gather the
    batches of `own_parts`, those of this process (default: all), and copy them.

    `max_tokens` bounds rows x longer side, padding included, of a micro-batch in one process; `n_parts` is
    processes x accumulation steps, so an update holds up to `max_tokens * n_parts`. Where its rows do not divide
    into the parts, each has up to one row more.

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
        device: torch.device = CPU,
        own_parts: range | None = None,
    ):
        if len(pairs) == 0:
            raise DataError("no sentence pair is left to train on: check --max_len and the training files")
        self.pairs = pairs
        self.device = device
        self.own_parts = range(n_parts) if own_parts is None else own_parts
        self.needs_bytes, self.room = size_on_device(pairs), room_on(device)
        self.gathered = GatheredPairs(pairs, device if self.fits_on_device else CPU)
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
        if batching == "bucketed":
            self.shapes, bucket_of = make_buckets(self.source_lengths, self.target_lengths, max_buckets)
            self.members = [np.flatnonzero(bucket_of == i) for i in range(len(self.shapes))]
            self.layout = self._layout_of_buckets()
        elif batching == "sorted":
            self.by_length = np.lexsort((self.source_lengths, self.target_lengths))
            self.layout = self._layout_by_budget(self.by_length)
        else:
            self.shapes = [Shape(int(self.source_lengths.max()), int(self.target_lengths.max()))]
            rows = self.rows_that_fit(self.shapes[0])
            sizes = np.diff([*range(0, len(pairs), rows), len(pairs)])
            self.layout = Layout.of_sizes(sizes, self.shapes * len(sizes))

    @property
    def fits_on_device(self) -> bool:
        """Whether the tokens lie on the device."""
        return self.needs_bytes <= self.room

    @property
    def note(self) -> str:
        """A line for the user where the tokens do not lie on the device, else ""."""
        if self.fits_on_device:
            return ""
        return (
            f"the tokens ({self.needs_bytes / 2**20:,.1f} MiB) stay in the memory of the host, since {self.device} "
            f"has room for {self.room / 2**20:,.1f} MiB of data: batches are copied ahead of their use"
        )

    def rows_that_fit(self, shape: Shape) -> int:
        """Rows of an update of this shape, a multiple of ROW_MULTIPLE and of the parts where that fits."""
        rows = self.budget // shape.cost
        for multiple in (math.lcm(ROW_MULTIPLE, self.n_parts), self.n_parts):
            if rows >= multiple:
                return rows - rows % multiple
        return rows

    def plan_epoch(self, epoch: int) -> PlannedEpoch:
        """The updates of an epoch, each sentence exactly once. Depends on the seed and the epoch alone."""
        rng = seeded_rng(Stream.BATCH_ORDER, self.seed, epoch)
        places = np.arange(len(self.layout.sizes))
        if self.batching == "sorted":
            order = self.by_length
        elif self.batching == "padded":
            order = rng.permutation(len(self.source_lengths))
        else:
            shuffled = [rng.permutation(members) for members in self.members]
            in_full = [len(m) - len(m) % self.rows_that_fit(s) for m, s in self._buckets()]
            full = [members[:n] for members, n in zip(shuffled, in_full, strict=True)]
            rest = [members[n:] for members, n in zip(shuffled, in_full, strict=True)]
            order = np.concatenate(full + rest)
            places = rng.permutation(len(places))
        target_tokens = np.add.reduceat(self.target_lengths[order], self.layout.starts)
        return PlannedEpoch(self.gathered, order, self.layout, places, target_tokens)

    def loaded(self, updates: Sequence[Update]) -> Sequence[Update]:
        """The updates to train on: copied ahead of their use where the tokens do not lie on the device."""
        if self.fits_on_device:
            return updates
        return Prefetched(updates, lambda update: update.loaded(self.own_parts, self.n_parts, self.device))

    def _buckets(self) -> Iterator[tuple[np.ndarray, Shape]]:
        return zip(self.members, self.shapes, strict=True)

    def _layout_of_buckets(self) -> Layout:
        """Full updates of each bucket in turn; then what is left of the buckets, in their order."""
        sizes: list[int] = []
        shapes: list[Shape] = []
        rest: list[Shape] = []  # the bucket's shape of each sentence
        for members, shape in self._buckets():
            rows = self.rows_that_fit(shape)
            n_full, n_left = divmod(len(members), rows)
            sizes += [rows] * n_full
            shapes += [shape] * n_full
            rest += [shape] * n_left
        start = 0
        while start < len(rest):
            end, shape = start, Shape(0, 0)
            while end < len(rest):
                wider = Shape(max(shape.source, rest[end].source), max(shape.target, rest[end].target))
                if (end - start + 1) * wider.cost > self.budget:
                    break
                shape, end = wider, end + 1
            sizes.append(end - start)
            shapes.append(shape)
            start = end
        return Layout.of_sizes(sizes, shapes)

    def _layout_by_budget(self, order: np.ndarray) -> Layout:
        """As many sentences an update, from `order` on, as the budget allows, but one in any case."""
        costs = np.maximum(self.source_lengths, self.target_lengths)[order]
        sizes = []
        start = 0
        while start < len(costs):
            longest = np.maximum.accumulate(costs[start : start + self.budget // costs[start] + 1])
            fits = np.arange(1, len(longest) + 1) * longest <= self.budget
            sizes.append(max(1, int(fits.sum())))
            start += sizes[-1]
        starts = np.cumsum([0, *sizes[:-1]])
        sources = np.maximum.reduceat(self.source_lengths[order], starts).tolist()
        targets = np.maximum.reduceat(self.target_lengths[order], starts).tolist()
        return Layout.of_sizes(sizes, [Shape(*lengths) for lengths in zip(sources, targets, strict=True)])

    def real_and_padding(self, updates: Sequence[Update]) -> tuple[np.ndarray, np.ndarray]:
        """Real and padding tokens of each update, both sides together, rows that fill a part being padding."""
        both = self.source_lengths + self.target_lengths
        real = np.array([both[update.sentences.cpu().numpy()].sum() for update in updates])
        return real, self._cells(updates) - real

    def padding_share(self, updates: Sequence[Update]) -> float:
        """Padding tokens over all tokens in the batches of an epoch as the model sees them."""
        n_real = int(self.source_lengths.sum() + self.target_lengths.sum())
        n_cells = int(self._cells(updates).sum())
        return (n_cells - n_real) / n_cells

    def _cells(self, updates: Sequence[Update]) -> np.ndarray:
        rows = [self.n_parts * math.ceil(len(update.sentences) / self.n_parts) for update in updates]
        return np.array([n * (u.shape.source + u.shape.target) for n, u in zip(rows, updates, strict=True)])
