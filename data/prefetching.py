"""What does not fit on the device is made ready by a thread, ahead of its use."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, overload

import torch

T = TypeVar("T")

AHEAD = 2  # items that are made ready while one is used
SHARE_OF_FREE_MEMORY = 0.5  # of a device: the rest is for the model and what it computes


def room_on(device: torch.device) -> float:
    """Bytes of data that may lie on a device. The CPU's memory is where data is anyway: without limit."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return SHARE_OF_FREE_MEMORY * free


class Prefetched(Sequence[T], Generic[T]):
    """`prepare(item)` of each item; a thread begins with the next ones when one is asked for.

    An error of `prepare` is raised where its item is asked for.
    """

    def __init__(self, items: Sequence, prepare: Callable[..., T]):
        self._items, self._prepare = items, prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetching")
        self._ready: dict[int, Future[T]] = {}

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        first = index % len(self)
        wanted = range(first, min(first + 1 + AHEAD, len(self)))
        kept = {i: ready for i, ready in self._ready.items() if i in wanted}
        self._ready = kept | {i: self._submit(i) for i in wanted if i not in kept}
        return self._ready[first].result()

    def _submit(self, index: int) -> "Future[T]":
        return self._thread.submit(self._prepare, self._items[index])
