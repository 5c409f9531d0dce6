"""Images that the device has no room for: they stay on the host, and what an update takes is copied ahead."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast, overload

import torch
from torch import Tensor

from data.prefetching import Prefetched, room_on


class RowsOnHost:
    """Rows (N, ...) of a tensor on the host, which may be mapped into memory, asked for as if on `device`.

    It has what is asked of the images of a split: a shape, and `rows[ids]`, which lies on the device. Rows of the
    update that `UpdatesAhead` gave last are there already; before there was one, they are read when asked for, and
    that waits for the device.
    """

    def __init__(self, rows: Tensor, device: torch.device):
        self.device, self.shape, self.dtype = device, rows.shape, rows.dtype
        self._rows = rows
        self._held: Tensor | None = None  # on the device: rows of the present update
        self._places = torch.empty(0, dtype=torch.int64)  # (N,) on the device: where each row is in these, or -1

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: int | slice | Tensor) -> Tensor:
        """On the device. Raises IndexError (on a GPU an assertion fails) for a row that is not of the update."""
        if self._held is not None and isinstance(which, Tensor):
            return self._held.index_select(0, self._places[which])
        return self._rows[which.cpu() if isinstance(which, Tensor) else which].to(self.device)

    def load(self, numbers: Tensor) -> Tensor:
        """A copy of the rows `numbers` (R,), int64 on the host, on the device; the copy may be under way."""
        return sent(self._rows[numbers], self.device)

    def hold(self, numbers: Tensor, rows: Tensor) -> None:
        """From now on `rows` (R, ...) are those that can be asked for: `numbers` (R,), both on the device."""
        if self._held is None:
            self._places = torch.empty(len(self), dtype=torch.int64, device=self.device)
        self._places.fill_(-1)
        self._places[numbers] = torch.arange(len(numbers), device=self.device)
        self._held = rows

    def split(self, n: int) -> tuple[Tensor, ...]:
        """All rows, `n` at a time, on the host."""
        return self._rows.split(n)

    def to(self, device: torch.device) -> Tensor:
        """All rows, on another device."""
        return self._rows.to(device)

    def cpu(self) -> Tensor:
        """All rows, on the host."""
        return self._rows


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; to a GPU from pinned memory, so that nobody waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class LoadedUpdate(NamedTuple):
    """An update with the rows that it takes, all on the device."""

    ids: Tensor  # (B,) of its images
    numbers: Tensor  # (R,) of the rows, each once
    rows: list[Tensor]  # of each of the arrays, (R, ...)


class UpdatesAhead(Sequence[Tensor]):
    """The image numbers of each update. With those of one, its rows are at hand, and no others."""

    def __init__(self, updates: Sequence[Tensor], needed: Callable[[Tensor], Tensor], arrays: Sequence[RowsOnHost]):
        self._arrays, self._needed = arrays, needed
        on_host = torch.cat(list(updates)).cpu().split([len(ids) for ids in updates])  # waits for the device
        self._loaded = Prefetched(on_host, self._load)

    def __len__(self) -> int:
        return len(self._loaded)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            raise TypeError("the rows of one update are at hand at a time: ask for one by its number")
        update = self._loaded[index]
        for array, rows in zip(self._arrays, update.rows, strict=True):
            array.hold(update.numbers, rows)
        return update.ids

    def _load(self, ids: Tensor) -> LoadedUpdate:
        numbers = self._needed(ids).unique()
        device = self._arrays[0].device
        return LoadedUpdate(sent(ids, device), sent(numbers, device), [a.load(numbers) for a in self._arrays])


def copied_ahead(
    updates: Sequence[Tensor], needed: Callable[[Tensor], Tensor], *arrays: Tensor
) -> Sequence[Tensor]:
    """The `updates`, image numbers (B,) each; rows of `arrays` that stay on the host are copied ahead of use.

    `needed(ids)` are the numbers, on the host, of the rows that this process takes in an update of `ids`. Where all
    arrays lie on the device, these are the same updates.
    """
    on_host = [array for array in arrays if isinstance(array, RowsOnHost)]
    return UpdatesAhead(updates, needed, on_host) if on_host else updates


def share_of(own_parts: Iterable[int], n_parts: int) -> Callable[[Tensor], Tensor]:
    """A function that takes from an update's image numbers those of a process's parts, of `n_parts` in all."""

    def own(ids: Tensor) -> Tensor:
        parts = ids.tensor_split(n_parts)
        return torch.cat([parts[part] for part in own_parts])

    return own


def kept_on_host(rows: Tensor, device: torch.device) -> Tensor:
    """`RowsOnHost` in place of a tensor on `device`."""
    return cast(Tensor, RowsOnHost(rows, device))


def without_room(
    device: torch.device, train_bytes: int, evaluation_bytes: int, whole_evaluation: bool
) -> tuple[bool, bool, str]:
    """Whether the training images stay on the host, whether those of the other splits do, and a line that says so.

    The training images come first, unless the others are evaluated as a whole: then these lie on the device in any
    case. The line is empty where nothing stays on the host.
    """
    room = room_on(device)
    train_stays = train_bytes + whole_evaluation * evaluation_bytes > room
    left = room if train_stays else room - train_bytes
    others_stay = evaluation_bytes > left and not whole_evaluation
    if not (train_stays or others_stay):
        return False, False, ""
    stays = " and ".join(
        f"the {name} images ({n_bytes / 2**20:,.1f} MiB on the device)"
        for name, n_bytes, stay in (
            ("training", train_bytes, train_stays),
            ("other", evaluation_bytes, others_stay),
        )
        if stay
    )
    return (
        train_stays,
        others_stay,
        f"{stays} stay in the memory of the host, since {device} has room for {room / 2**20:,.1f} MiB of data: "
        f"batches are copied {'ahead of their use' if train_stays else 'when they are evaluated'}",
    )
