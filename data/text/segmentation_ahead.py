"""BPE-dropout of the training text, an epoch ahead of its use, by a process of its own.

A thread would not do: segmenting is Python, which one thread at a time may run, and the loop would wait for it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.cache import cached_arrays, content_key
from data.seeding import Stream, seeded_rng
from data.text.bpe_dropout import BPEDropout
from data.text.parallel_text import ParallelText
from data.text.text_column import TextColumn
from data.text.tokenization import TextTokenizer
from data.text.tokenized_text import TokenizedPairs, TokenizedText

ROOT = Path(__file__).resolve().parents[2]
NICENESS = 10  # of the process: the loop goes first


class SegmentationAhead:
    """The pairs of each epoch, fixed by (seed, epoch) alone; while one is trained on, the next is made."""

    def __init__(
        self, text: ParallelText, tokenizers: tuple[TextTokenizer, TextTokenizer], dropout: float, seed: int
    ):
        self._ahead: tuple[int, subprocess.Popen, IO[bytes]] | None = None
        self._text, self._tokenizers = text, tokenizers
        self._dropout, self._seed = dropout, seed
        self._segmenters = [BPEDropout(tokenizer, dropout) for tokenizer in tokenizers]
        self._can_begin = True
        self._latest: tuple[int, TokenizedPairs] | None = None
        self._work: IO[bytes] | None = None  # what the process reads: made once, without a name to be removed

    def pairs(self, epoch: int, more: bool = False) -> TokenizedPairs:
        """The pairs of `epoch`; where there is `more` to come, those of the next one are begun with."""
        if self._latest is None or self._latest[0] != epoch:
            self._latest = epoch, self._made_ahead(epoch) or self._made_here(epoch)
        if more and self._can_begin:
            try:
                self._begin(epoch + 1)
            except OSError as error:  # no room for its files, no other process
                self._can_begin = False
                print(f"warning: each epoch is segmented as it begins, not ahead ({error})", file=sys.stderr)
        return self._latest[1]

    def _made_here(self, epoch: int) -> TokenizedPairs:
        if epoch > 0:
            return segmented(self._text, self._segmenters, self._seed, epoch)
        # Every start looks at the first epoch, wherever a resumed run stands: so it is kept in the cache.
        settings = {"tokenizers": [t.to_json() for t in self._tokenizers], "seed": self._seed}
        columns = self._text.sources, self._text.targets
        key = content_key(
            {**settings, "bpe_dropout": self._dropout, "format": 1}, [b for c in columns for b in c.buffers()]
        )

        def build() -> dict[str, np.ndarray]:
            return _as_arrays(segmented(self._text, self._segmenters, self._seed, epoch))

        return _from_arrays(cached_arrays(key, ARRAYS, build))

    def _begin(self, epoch: int) -> None:
        if self._ahead and self._ahead[0] == epoch:
            return
        self.stop()
        if self._work is None:
            self._work = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this does
            self._write_work(self._work)
        self._work.seek(0)
        result = tempfile.TemporaryFile()  # noqa: SIM115  # until it is read
        process = subprocess.Popen(
            [sys.executable, "-m", "data.text.segmentation_ahead", str(epoch)],
            stdin=self._work,
            stdout=result,
            stderr=subprocess.DEVNULL,  # what fails there is done here, and fails here
            cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for the run, which saves a checkpoint
        )
        self._ahead = epoch, process, result

    def _write_work(self, file: IO[bytes]) -> None:
        about = {
            "tokenizers": [tokenizer.to_json() for tokenizer in self._tokenizers],
            "dropout": self._dropout,
            "seed": self._seed,
        }
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)}
        for side in ("sources", "targets"):
            arrays[f"{side}.text"], arrays[f"{side}.offsets"] = getattr(self._text, side).buffers()
        np.savez(file, **arrays)

    def _made_ahead(self, epoch: int) -> TokenizedPairs | None:
        if self._ahead is None or self._ahead[0] != epoch:
            return None
        _, process, result = self._ahead
        self._ahead = None
        if process.wait() != 0:
            return None
        result.seek(0)
        with result, np.load(result) as arrays:
            return _from_arrays(arrays)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._ahead:
            self._ahead[1].kill()
            self._ahead[1].wait()
            self._ahead[2].close()
            self._ahead = None

    def __del__(self) -> None:
        self.stop()


def segmented(text: ParallelText, segmenters: list[BPEDropout], seed: int, epoch: int) -> TokenizedPairs:
    """The pairs as BPE-dropout has them in an epoch."""
    rng = seeded_rng(Stream.SEGMENTATION, seed, epoch)
    return TokenizedPairs(
        *(
            TokenizedText.from_lists(segmenter.encode_each(sentences, rng))
            for segmenter, sentences in zip(segmenters, (text.sources, text.targets), strict=True)
        )
    )


ARRAYS = ("source.tokens", "source.offsets", "target.tokens", "target.offsets")


def _as_arrays(pairs: TokenizedPairs) -> dict[str, np.ndarray]:
    """The sentences of `segmented`, which follow each other without a gap."""
    offsets = [np.append(side.starts, len(side.tokens)) for side in (pairs.source, pairs.target)]
    return dict(zip(ARRAYS, (pairs.source.tokens, offsets[0], pairs.target.tokens, offsets[1]), strict=True))


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> TokenizedPairs:
    source_tokens, source_offsets, target_tokens, target_offsets = (arrays[name] for name in ARRAYS)
    return TokenizedPairs(
        TokenizedText.from_offsets(source_tokens, source_offsets),
        TokenizedText.from_offsets(target_tokens, target_offsets),
    )


def main(epoch: int) -> None:
    """The process: read what `SegmentationAhead` wrote from stdin, write the tokens to stdout; both are files."""
    os.nice(NICENESS)
    with np.load(sys.stdin.buffer) as work:
        about = json.loads(work["about"].tobytes())
        sources, targets = (
            TextColumn.from_buffers(work[f"{side}.text"], work[f"{side}.offsets"])
            for side in ("sources", "targets")
        )
    segmenters = [BPEDropout(TextTokenizer.from_json(j), about["dropout"]) for j in about["tokenizers"]]
    pairs = segmented(ParallelText(sources, targets), segmenters, about["seed"], epoch)
    arrays: dict[str, Any] = _as_arrays(pairs)
    np.savez(sys.stdout.buffer, **arrays)


if __name__ == "__main__":
    main(int(sys.argv[1]))
