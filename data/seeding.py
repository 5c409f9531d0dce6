"""Random streams that depend on what they are for, and not on what was drawn before.

A stream is found by its key: the use (`Stream`), the run's seed, and where in the run, such as (epoch, update).
"""

import random
from enum import IntEnum

import numpy as np
import torch

LARGEST = 2**32 - 1  # of a key's numbers: each is one word of numpy's SeedSequence


class Stream(IntEnum):
    """What random numbers are for, and in brackets what follows the seed in the key.

    A use has a number of its own, which never becomes another's: with it the runs of a seed would change.
    """

    INITIAL_WEIGHTS = 1  # of the model ()
    BATCH_ORDER = 2  # which examples make up each update (epoch)
    SEGMENTATION = 3  # BPE-dropout of the training text (epoch)
    AUGMENTATION = 4  # of the training images (epoch)
    DROPOUT = 5  # whatever draws from the global generators in training (update, micro-batch)
    LATENT_NOISE = 6  # what the CVAE is trained under: flips, pixels, withheld labels, latents (update)
    TRAINING_PIXELS = 7  # training images that are binarised once ()
    TEST_PIXELS = 8  # test images, binarised ()
    BOUND = 9  # latents of evaluated images, for the bounds (batch)
    LABEL_HITS = 10  # pictures that a classifier judges (batch)
    FIGURES = 11  # pictures of a figure (figure)
    SAMPLES = 12  # pictures that tools.sample draws (class)
    TRANSLATIONS = 13  # sentences that tools.translate samples (sentence)
    LABEL_PROBE = 14  # initial weights of what reads the label from the latent ()
    VALIDATION_PIXELS = 15  # validation images, binarised ()


def seeded_rng(stream: Stream, seed: int, *key: int) -> np.random.Generator:
    """A numpy generator for the key (stream, seed, *key), whose numbers lie between 0 and `LARGEST`.

    Keys that differ in any number, or in their length, give independent streams. Raises ValueError for a number
    out of range.
    """
    return np.random.default_rng(_seed_sequence(stream, seed, key))


def seeded_generator(device: torch.device, stream: Stream, seed: int, *key: int) -> torch.Generator:
    """Likewise a torch generator on `device`.

    On a CPU torch looks at 32 bits of a seed: of 100,000 keys, one pair or so has the same numbers by chance.
    """
    return torch.Generator(device).manual_seed(_torch_seed(stream, seed, key))


def seed_global_generators(stream: Stream, seed: int, *key: int) -> None:
    """Seed the generators that Python, numpy and torch, on every device, draw from where none is named."""
    state = _torch_seed(stream, seed, key)
    random.seed(state)
    np.random.seed(state % (LARGEST + 1))
    if torch.accelerator.is_available():
        torch.manual_seed(state)
    else:  # the same, without the stack trace that torch takes for a CUDA that may come: six times as fast
        torch.default_generator.manual_seed(state)


def seed_micro_batch(seed: int, step: int, part: int) -> None:
    """Seed the global generators for part `part` of update `step`, whichever process computes it.

    So two processes draw what one with two micro-batches an update draws, and a resume needs no random states.
    """
    seed_global_generators(Stream.DROPOUT, seed, step, part)


def _torch_seed(stream: Stream, seed: int, key: tuple[int, ...]) -> int:
    (state,) = _seed_sequence(stream, seed, key).generate_state(1, np.uint64)
    return int(state) & (2**63 - 1)


def _seed_sequence(stream: Stream, seed: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    for number in (seed, *key):
        if not 0 <= number <= LARGEST:
            raise ValueError(f"seed or key {number}: give a whole number from 0 to {LARGEST}")
    # As entropy the whole key would be filled up with zeros to four words, so that (1, 5) were (1, 5, 0). Before
    # a spawn key numpy fills up the seed alone, and each further word counts.
    return np.random.SeedSequence(seed, spawn_key=(stream, *key))
