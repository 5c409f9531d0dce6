"""Translate with a finished run: `python -m tools.translate RUN "a sentence" ..`, or lines on stdin.

All that it needs is in the run's folder: the best checkpoint brings weights, config and tokenizers along. With
`--engine ctranslate2` CTranslate2 does the search, faster; RUN may then be what `tools.export` wrote for it.
"""

import codecs
import io
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import torch
import tyro
from tyro.conf import Positional

from data.seeding import Stream, seeded_generator
from data.text.tokenization import TextTokenizer
from models.decoding import decode_in_batches, sample
from tools.exporting.packages import require_packages
from tools.pretrained.translation import translate_sentences
from train_translation import OLD_RULES, SPECIAL, Config, build_model
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import default_device, open_run
from training.ranges import BatchSize, BeamSize, Count, LengthPower, Seed, Temperature, TokenBudget

Engine = Literal["torch", "ctranslate2"]
Quantization = Literal["float32", "int8", "int8_float32"]

CHUNK_BYTES = 1 << 20  # most that is read of stdin at a time


class Translator:
    """A trained model with its tokenizers: `Translator(run)(["a sentence"]) -> ["una frase"]`.

    `run` is a run folder (its best checkpoint is taken) or one checkpoint. Raises UsageError if there is none.
    """

    def __init__(self, run: str | Path, device: torch.device | None = None):
        opened = open_run(run, "translation", Config, OLD_RULES)
        tested_with = opened.summary.get("length_penalty", opened.config.length_penalty)
        self.config = replace(opened.config, length_penalty=tested_with)
        self.device = device or default_device()
        self.source_tokenizer = TextTokenizer.load(opened.checkpoint / "source_tokenizer.json")
        self.target_tokenizer = TextTokenizer.load(opened.checkpoint / "target_tokenizer.json")
        vocab_sizes = self.source_tokenizer.vocab_size, self.target_tokenizer.vocab_size
        self.model = opened.load(build_model(self.config, *vocab_sizes), self.device)

    def __call__(
        self,
        sentences: list[str],
        *,
        beam_size: int | None = None,
        length_penalty: float | None = None,
        batch_size: int = 64,
        max_tokens: int = 32768,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        n_before: int = 0,
    ) -> list[str]:
        """Translations in the order of the sentences; an empty sentence stays empty.

        Beam search with the run's own settings unless told otherwise; `temperature` > 0 samples instead, each
        sentence by its number, counted on from `n_before`.
        A sentence is cut after the run's `eval_max_len` tokens, and a line on stderr says of how many.
        Of a run with masked numbers, those of each sentence are copied into its translation.
        """

        def search(sources: list[list[int]], numbers: list[int]) -> list[list[int]]:
            if temperature > 0:
                outputs = []
                for i, tokens in zip(numbers, sources, strict=True):
                    generator = seeded_generator(torch.device("cpu"), Stream.TRANSLATIONS, seed, n_before + i)
                    source = torch.tensor([tokens], device=self.device)
                    outputs += sample(self.model, source, SPECIAL, [generator], temperature, top_k)
                return outputs
            return decode_in_batches(
                self.model,
                sources,
                SPECIAL,
                beam_size=self.config.beam_size if beam_size is None else beam_size,
                length_penalty=self.config.length_penalty if length_penalty is None else length_penalty,
                length_normalization=self.config.length_normalization,
                batch_size=batch_size,
                max_tokens=max_tokens,
                device=self.device,
            )

        tokenizers = self.source_tokenizer, self.target_tokenizer
        return translate_sentences(sentences, *tokenizers, self.config.eval_max_len, search)


def lines_as_they_come(stream: BinaryIO) -> Iterator[list[str]]:
    """The lines of a UTF-8 stream, without their ends: those that have come by then, in one list.

    A file or a full pipe gives some 64 KiB or more at a time, someone who waits for each answer a line. Raises
    UnicodeDecodeError.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    begun = ""
    while chunk := stream.read1(CHUNK_BYTES):  # type: ignore[attr-defined]  # of buffered streams, as stdin's is
        *lines, begun = (begun + decoder.decode(chunk)).split("\n")
        if lines:
            yield [line.rstrip("\r") for line in lines]
    begun += decoder.decode(b"", final=True)
    if begun:
        yield [begun.rstrip("\r")]


def main(
    run: Positional[PathFlag],
    sentences: Positional[tuple[str, ...]] = (),
    beam_size: Annotated[BeamSize | None, tyro.conf.arg(help="beams; default: as the run was evaluated")] = None,
    length_penalty: Annotated[LengthPower | None, tyro.conf.arg(help="power of the length; likewise")] = None,
    batch_size: Annotated[BatchSize, tyro.conf.arg(help="most sentences translated at a time")] = 64,
    max_tokens: Annotated[
        TokenBudget, tyro.conf.arg(help="most tokens at a time: beams x (source + longest translation)")
    ] = 32768,
    temperature: Annotated[Temperature, tyro.conf.arg(help="above 0: sample instead of searching")] = 0.0,
    top_k: Annotated[Count, tyro.conf.arg(help="when sampling, only from the k likeliest tokens; 0: all")] = 0,
    seed: Annotated[Seed, tyro.conf.arg(help="of the samples")] = 0,
    engine: Annotated[Engine, tyro.conf.arg(help="what searches; ctranslate2: an optional package")] = "torch",
    quantization: Annotated[Quantization, tyro.conf.arg(help="ctranslate2, of a run: of the matrices")] = "float32",
) -> None:
    """Translate sentences given as arguments, else the lines of stdin as they come, to stdout, one a line.

    Args:
        run: run folder (its best checkpoint is taken) or one checkpoint
        sentences: what to translate; without any, lines are read from stdin
    """
    try:
        searching: dict[str, Any] = {
            "beam_size": beam_size,
            "length_penalty": length_penalty,
            "batch_size": batch_size,
            "max_tokens": max_tokens,
        }
        translate: Any
        counts_on = False  # whether a sentence's number matters
        if engine == "ctranslate2":
            if temperature > 0 or top_k > 0:
                raise UsageError("--temperature and --top_k are of --engine torch: leave out the one or the other")
            require_packages("--engine ctranslate2", "ctranslate2")
            from tools.exporting.ctranslate2_model import CTranslate2Translator

            translate = partial(CTranslate2Translator.of(run, quantization, default_device()), **searching)
        else:
            if quantization != "float32":
                raise UsageError("--quantization is of --engine ctranslate2: leave it out, or add that")
            sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "seed": seed}
            translate = partial(Translator(run), **searching, **sampling)
            counts_on = temperature > 0
        assert isinstance(sys.stdin, io.TextIOWrapper) and isinstance(sys.stdout, io.TextIOWrapper)
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # as stdin, whatever the locale
        if sentences:
            print("\n".join(translate(list(sentences))))
            return
        n_before = 0
        for lines in lines_as_they_come(sys.stdin.buffer):
            numbered = {"n_before": n_before} if counts_on else {}
            print("\n".join(translate(lines, **numbered)), flush=True)
            n_before += len(lines)
    except (UsageError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main), stdout_is_the_result=True)
