import threading

import pytest
import torch

from data.prefetching import AHEAD, Prefetched, room_on


def test_the_next_items_are_prepared_by_a_thread_and_no_others():
    prepared, threads, asked_for = [], set(), threading.Event()

    def prepare(item: int) -> int:
        prepared.append(item)
        threads.add(threading.current_thread())
        if item == 4 + AHEAD:
            asked_for.set()
        return 10 * item

    items = Prefetched(range(100), prepare)
    assert items[4] == 40
    assert asked_for.wait(10)
    assert prepared == list(range(4, 5 + AHEAD)) and threading.current_thread() not in threads
    assert [items[i] for i in (5, 6, 50, -1)] == [50, 60, 500, 990]
    assert prepared.count(5) == 1 and len(items) == 100 and items[2:4] == [20, 30]
    assert list(Prefetched(range(5), str)) == ["0", "1", "2", "3", "4"]


def test_an_error_is_raised_where_its_item_is_asked_for():
    def prepare(item: int) -> int:
        if item == 1:
            raise ValueError("one")
        return item

    items = Prefetched(range(3), prepare)
    assert items[0] == 0
    with pytest.raises(ValueError, match="one"):
        items[1]
    with pytest.raises(IndexError):
        items[3]


def test_the_memory_of_the_host_has_room_and_a_gpu_half_of_what_is_free(monkeypatch):
    assert room_on(torch.device("cpu")) == float("inf")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    assert room_on(torch.device("cuda", 0)) == 500
