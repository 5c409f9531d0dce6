"""Parallel text made by code, for measurements that must not depend on a download."""

import gzip
from pathlib import Path

import numpy as np

from benchmarks.corpus_scale import words_of_language

N_WORDS = 20_000  # different words of a language


def write_made_corpus(folder: Path, n_pairs: int, mean_words: float = 24.0, seed: int = 0) -> tuple[str, str]:
    """Write `n_pairs` lines a side as gzip files in `folder`, unless they are there; the paths of the two.

    Words are frequent as Zipf has it, lengths are spread as those of books (standard deviation as large as the
    mean, 1 to 100 words), and each target sentence is the source's words in another spelling, some swapped: it
    compresses and batches as text does, but there is nothing to learn beyond that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(str(folder / f"made-{n_pairs}.{side}.gz") for side in ("source", "target"))
    if all(Path(path).is_file() for path in paths):
        return paths[0], paths[1]
    rng = np.random.default_rng(seed)
    vocabularies = [words_of_language(seed, N_WORDS) for seed in range(2)]
    shares = 1 / np.arange(2, N_WORDS + 2)
    variance = np.log(2)  # of the logarithm, where standard deviation and mean are equal
    lengths = rng.lognormal(np.log(mean_words) - variance / 2, np.sqrt(variance), n_pairs)
    lengths = lengths.round().clip(1, 100).astype(np.int64)
    chosen = rng.choice(N_WORDS, lengths.sum(), p=shares / shares.sum())
    swapped = chosen.copy()
    places = np.flatnonzero(rng.random(len(chosen) - 1) < 0.1)
    swapped[places], swapped[places + 1] = chosen[places + 1], chosen[places]
    ends = lengths.cumsum()
    for path, words, numbers in zip(paths, vocabularies, (chosen, swapped), strict=True):
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
            for sentence in np.split(numbers, ends[:-1]):
                file.write(" ".join(words[sentence]) + ".\n")
    return paths[0], paths[1]
