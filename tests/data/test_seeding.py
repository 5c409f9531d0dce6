import random
from itertools import combinations

import numpy as np
import pytest
import torch

from data.images.augmentation import Augmentation, Augmenter
from data.images.epoch_order import plan_epoch
from data.seeding import LARGEST, Stream, seed_global_generators, seeded_generator, seeded_rng
from data.text.batching import BatchPlanner
from data.text.tokenized_text import TokenizedPairs, TokenizedText

CPU = torch.device("cpu")
STREAM = Stream.BOUND


def first_numbers(stream: Stream, seed: int, *key: int) -> tuple[float, ...]:
    """Of the torch and then of the numpy generator."""
    ours = torch.rand(4, generator=seeded_generator(CPU, stream, seed, *key), dtype=torch.float64)
    return (*ours.tolist(), *seeded_rng(stream, seed, *key).random(4).tolist())


def are_all_different(draws: list[tuple[float, ...]]) -> bool:
    """Whether no number of one stream is among those of another."""
    return all(not set(a) & set(b) for a, b in combinations(draws, 2))


def test_a_key_gives_one_stream_and_others_give_others():
    keys = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (0, 1), (0, 1, 3), (LARGEST, 0, 0), (0, LARGEST)]
    assert first_numbers(STREAM, *keys[0]) == first_numbers(STREAM, *keys[0])
    assert are_all_different([first_numbers(STREAM, *key) for key in keys])


def test_no_two_uses_share_a_stream_whatever_their_keys():
    """Nor a use with one of the same seed's plain generators, from which the embedded data sets are drawn."""
    draws = [
        first_numbers(stream, seed, *key)
        for stream in Stream
        for seed in (0, 1, 5)
        for key in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
    ]
    for seed in range(3):
        draws += [tuple(np.random.default_rng([seed, split]).random(4).tolist()) for split in range(2)]
        draws.append(tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist()))
    assert are_all_different(draws)
    assert len(set(Stream)) == len(Stream.__members__)  # no number was given twice


@pytest.mark.parametrize("key", [(), (5,), (1, 5), (1, 5, 3)])
def test_a_zero_at_the_end_of_a_key_is_a_number_like_others(key):
    assert are_all_different([first_numbers(STREAM, 1, *key, *[0] * n) for n in range(6)])


def test_neighbouring_keys_are_uncorrelated():
    normals = torch.stack([torch.randn(2000, generator=seeded_generator(CPU, STREAM, 7, i)) for i in range(20)])
    off_diagonal = torch.corrcoef(normals)[~torch.eye(20, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 0.12  # five standard deviations


@pytest.mark.parametrize("key", [(-1,), (2**32,), (202401311200,), (0, -1), (0, 2**32)])
def test_a_number_out_of_range_is_refused_by_name(key):
    with pytest.raises(ValueError, match=f"{max(key, key=abs)}: give a whole number from 0 to {LARGEST}"):
        seeded_rng(STREAM, *key)
    with pytest.raises(ValueError, match="from 0 to"):
        seeded_generator(CPU, STREAM, *key)
    with pytest.raises(ValueError, match="from 0 to"):
        seed_global_generators(STREAM, *key)


def test_the_global_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    seeded_generator(CPU, STREAM, 1)
    assert torch.equal(torch.rand(2), expected)


def test_the_global_generators_follow_their_key():
    def drawn(*key):
        seed_global_generators(Stream.DROPOUT, *key)
        return random.random(), float(np.random.rand()), *torch.rand(3).tolist()

    draws = [drawn(0, 0), drawn(0, 1), drawn(1, 0)]
    assert drawn(0, 0) == draws[0]
    assert are_all_different(draws)


def test_the_orders_of_text_and_images_and_their_augmentation_use_the_table(monkeypatch):
    """Each draws from its own stream of (seed, epoch), and from nothing else."""
    used = []
    genuine = np.random.SeedSequence
    monkeypatch.setattr(
        "data.seeding.np.random.SeedSequence",
        lambda seed, spawn_key: used.append((Stream(spawn_key[0]), seed, *spawn_key[1:])) or genuine(seed),
    )
    text = TokenizedText.from_lists([[9] * n for n in range(1, 9)])
    BatchPlanner(TokenizedPairs(text, text), max_tokens=20, seed=3).plan_epoch(2)
    plan_epoch(8, 4, seed=3, epoch=2, device=CPU)
    mean = torch.zeros(3)
    Augmenter(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), Augmentation(), mean, mean + 1, seed=3).draw(2)
    assert set(used) == {
        (Stream.BATCH_ORDER, 3, 2),
        (Stream.AUGMENTATION, 3, 0),
        (Stream.AUGMENTATION, 3, 2),
    }
