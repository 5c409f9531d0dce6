"""What a corpus of many pairs costs to start training on: seconds, peak memory, pairs a second.

    python -m benchmarks.corpus_scale
    python -m benchmarks.corpus_scale --pairs 1000000 10000000 --folder /tmp/corpus

The corpus is made by code: about 16 words a side, of words as frequent as Zipf's law has them, some with accents,
some lines twice. A start is what train_translation.py does before its first update: it reads the files, cleans and
splits the pairs, trains the tokenizers, tokenises and plans the first epoch. The second start finds the cache of
the first. Each start is a process of its own.

`CPU` are seconds of computing, over all cores, which other work on the machine changes less than `seconds`; `text`,
`tokens` and `plan` are the parts of these after the imports. `host ms` is what planning and gathering the batch of
an update takes of the loop. `peak` is the most memory held at a time, and `without maps` leaves out the pages of
files, which processes share.
"""

import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import torch
import tyro

if TYPE_CHECKING:
    from data.text.batching import BatchPlanner, Update

CHUNK = 100_000  # sentences that are made at a time
N_WORDS = 200_000  # different words of a language
WORDS_A_SIDE = 16
BATCHES = 200  # that are timed
COLUMNS = {  # and their decimal places
    "seconds": 1,
    "CPU": 1,
    "text": 1,
    "tokens": 1,
    "plan": 2,
    "pairs/s": 0,
    "host ms": 3,
    "peak MiB": 0,
    "without maps": 0,
}
SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sta", "ve", "zi", "nè", "tà", "ù")


@dataclass(frozen=True)
class Config:
    pairs: tuple[int, ...] = (10_000, 100_000, 1_000_000)  # sizes of the corpus
    recipe: str = "opus-en-it"  # whose tokenizers and batches are made
    folder: str = ""  # where corpora and caches are kept meanwhile; default: the system's temporary folder


def words_of_language(seed: int, n_words: int = N_WORDS) -> np.ndarray:
    """(n_words,) different words, of two syllables and more."""
    rng = np.random.default_rng(seed)
    syllables = rng.choice(SYLLABLES, (2 * n_words, 6))
    lengths = rng.integers(2, 7, 2 * n_words)
    words = dict.fromkeys("".join(row[:n]) for row, n in zip(syllables, lengths, strict=True))
    return np.array(list(words)[:n_words], dtype=object)


def write_corpus(folder: Path, n_pairs: int) -> tuple[str, str]:
    """Write `n_pairs` line-aligned pairs below `folder`, the same at each call; the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "corpus.en", folder / "corpus.it"
    with paths[0].open("w", encoding="utf-8") as source, paths[1].open("w", encoding="utf-8") as target:
        for seed, file in enumerate((source, target)):
            words = words_of_language(seed, N_WORDS)
            rng = np.random.default_rng([seed, 1])
            lengths_rng = np.random.default_rng(2)  # the same of both sides, but for a word more or less
            for start in range(0, n_pairs, CHUNK):
                n = min(CHUNK, n_pairs - start)
                lengths = 3 + lengths_rng.poisson(WORDS_A_SIDE - 3, n) + rng.integers(0, 2, n)
                ranks = np.minimum(rng.zipf(1.2, lengths.sum()), N_WORDS) - 1
                drawn = words[ranks].tolist()
                ends = np.cumsum(lengths).tolist()
                lines = [" ".join(drawn[a:b]).capitalize() for a, b in zip([0, *ends], ends, strict=False)]
                lines[n // 2 :: 100] = [lines[0]] * len(lines[n // 2 :: 100])
                file.writelines(f"{line}.\n" for line in lines)
    return str(paths[0]), str(paths[1])


def start(connection: Connection, config: Config, n_pairs: int, files: tuple[str, str], cache: str) -> None:
    """The worker: start as the script does, then report seconds and bytes."""
    os.environ["ONECYCLE_CACHE"] = cache
    began = time.perf_counter()
    import train_translation as script
    from data.text.batching import BatchPlanner

    imported = time.perf_counter()
    held = MemoryWatch()
    settings = script.Config(**{**vars(script.RECIPES[config.recipe][1]), "train_files": files})
    splits = script.load_splits(settings)
    read = time.perf_counter()
    corpus = script.tokenize(splits, settings)
    tokenized = time.perf_counter()
    planner = BatchPlanner(corpus.train, settings.max_tokens)
    updates = planner.plan_epoch(0)
    planned = time.perf_counter()
    peaks = held.peaks()
    cpu = time.process_time()
    host_ms = 1000 * host_seconds(planner, updates[:BATCHES])
    seconds = planned - began
    connection.send(
        {
            "seconds": seconds,
            "CPU": cpu,
            "text": read - imported,
            "tokens": tokenized - read,
            "plan": planned - tokenized,
            "pairs/s": n_pairs / seconds,
            "host ms": host_ms,
            **peaks,
        }
    )


def host_seconds(planner: "BatchPlanner", updates: "Sequence[Update]") -> float:
    """What an update's batch takes of this thread's time: its share of planning an epoch, and the median gather."""
    began = time.thread_time()
    n_updates = len(planner.plan_epoch(1))
    planning = (time.thread_time() - began) / n_updates
    gathering = []
    for update in updates:
        began = time.thread_time()
        update.micro_batch(0, 1, torch.device("cpu"))
        gathering.append(time.thread_time() - began)
    return planning + statistics.median(gathering)


class MemoryWatch:
    """Looks at this process's memory twenty times a second."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._most = 0
        self._most_private = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(0.05):
            memory = self._process.memory_info()
            self._most = max(self._most, memory.rss)
            self._most_private = max(self._most_private, memory.rss - memory.shared)

    def peaks(self) -> dict[str, float]:
        """The most bytes held so far, with and without the pages of files."""
        self._ended.set()
        self._thread.join()
        return {"peak MiB": self._most / 2**20, "without maps": self._most_private / 2**20}


def measured_start(config: Config, n_pairs: int, files: tuple[str, str], cache: str) -> dict[str, float]:
    """What a start reports, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=start, args=(theirs, config, n_pairs, files, cache))
    worker.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        worker.join()


def main(config: Config) -> None:
    """Print a line for each size and start."""
    print(f"{'pairs':>12} {'start':>7}" + "".join(f"{name:>14}" for name in COLUMNS))
    for n_pairs in config.pairs:
        if config.folder:
            Path(config.folder).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="corpus-", dir=config.folder or None))
        try:
            files = write_corpus(folder, n_pairs)
            for name in ("first", "second"):
                row = measured_start(config, n_pairs, files, str(folder / "cache"))
                values = "".join(f"{row[column]:14,.{digits}f}" for column, digits in COLUMNS.items())
                print(f"{n_pairs:12,} {name:>7}{values}", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True, description=__doc__))
