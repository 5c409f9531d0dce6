import time

import torch

from benchmarks.turns import speed_over


def test_a_speed_counts_what_each_update_trained_on():
    sizes = []

    def update() -> int:
        time.sleep(0.02)
        sizes.append(30 if len(sizes) % 2 else 10)
        return sizes[-1]

    began = time.perf_counter()
    speed = speed_over(0.2, update, torch.device("cpu"))
    seconds = time.perf_counter() - began
    assert len(sizes) >= 2 and seconds >= 0.2
    assert abs(speed * seconds / sum(sizes) - 1) < 0.2


def test_an_update_longer_than_the_turn_is_made_twice():
    calls = []
    speed_over(0.0, lambda: calls.append(None) or 1, torch.device("cpu"))
    assert len(calls) == 2
