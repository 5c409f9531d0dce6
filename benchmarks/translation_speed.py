"""Training speed of train_translation.py as it is made faster, step by step, in one run.

    python -m benchmarks.translation_speed --train_files corpus.en.gz corpus.it.gz

Padded batches in fp32 come first, then bucketed ones, then mixed precision, then torch.compile. Each variant
trains with the script's own update, taking turns with the others (benchmarks/turns.py).
"""

import itertools
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import tyro

from benchmarks.turns import (
    load_of_device,
    ratio_text,
    serve_turns,
    set_backends_of,
    set_precision,
    speed_over,
    take_turns,
)

VARIANTS = {
    "padded, fp32": {"batching": "padded", "precision": "no", "compile": False},
    "bucketed, fp32": {"batching": "bucketed", "precision": "no", "compile": False},
    "+ mixed precision": {"batching": "bucketed", "precision": "mixed", "compile": False},
    "+ compile": {"batching": "bucketed", "precision": "mixed", "compile": True},
}


@dataclass(frozen=True)
class Config:
    train_files: tuple[str, ...] = ()  # corpus to train on; without it the embedded phrasebook
    precision: str = "bf16"  # the mixed precision: bf16, or fp16 on a GPU without bf16
    d_model: int = 256  # width; the defaults are the size that other toolkits were measured with
    n_heads: int = 4  # attention heads
    n_layers: int = 3  # encoder layers, and as many decoder layers
    d_ff: int = 1024  # width inside the feed-forward blocks
    vocab_size: int = 8000  # joint BPE vocabulary
    max_tokens: int = 4096  # token budget of an update, padding counted
    rounds: int = 5  # turns that each variant takes
    seconds: float = 15.0  # training time of a turn
    skip_compile: bool = False  # leave the compiled variant out
    output: str = ""  # JSON file to write the rounds to


def train_in_turns(connection: Connection, config: Config, variant: dict) -> None:
    """The worker: gets ready, then trains for `seconds` whenever told to; answers with target tokens/s."""
    set_precision(variant, config.precision)
    import torch

    import train_translation as script
    from data.text.batching import BatchPlanner
    from data.text.corpus import TranslationCorpus, load_text_splits
    from training.cpu_memory import keep_freed_memory
    from training.run import open_accelerator

    torch.set_num_threads(os.cpu_count() or 1)
    settings = replace(
        script.RECIPES["opus-en-it"][1],
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_encoder_layers=config.n_layers,
        n_decoder_layers=config.n_layers,
        d_ff=config.d_ff,
    )
    accelerator = open_accelerator()
    set_backends_of(variant)
    splits = load_text_splits("phrasebook", "", ("en", "it"), train_files=config.train_files)
    corpus = TranslationCorpus(
        splits, kind="bpe", vocab_size=config.vocab_size, min_frequency=1, lowercase=False, joint=True, max_len=128
    )
    torch.manual_seed(0)
    model = script.build_model(settings, corpus.source_tokenizer.vocab_size, corpus.target_tokenizer.vocab_size)
    if variant["compile"] == "blocks":
        for layer in [*model.encoder_layers, *model.decoder_layers]:
            layer.compile(dynamic=True)
    elif variant["compile"]:
        model.compile(dynamic=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=accelerator.mixed_precision != "fp16")
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # as training/setup.py has it
    model, optimizer = accelerator.prepare(model, optimizer)
    planner = BatchPlanner(corpus.train, config.max_tokens, batching=variant["batching"], device=accelerator.device)

    def updates():
        for epoch in range(10**6):
            yield from planner.plan_epoch(epoch)

    stream = updates()
    steps = itertools.count()

    def train_once() -> int:
        update = next(stream)
        script.train_update(accelerator, model, optimizer, settings, None, update, next(steps), 1e-4)
        return update.target_tokens

    def train_for(seconds: float) -> float:
        return speed_over(seconds, train_once, accelerator.device)

    started = time.perf_counter()
    train_for(min(config.seconds, 5.0))  # warm-up: compilation, allocator, caches
    ready = {
        "warm_up_seconds": time.perf_counter() - started,
        "padding": planner.padding_share(planner.plan_epoch(0)),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        **load_of_device(variant, train_once, accelerator.device),
        "device": str(accelerator.device),
    }
    serve_turns(connection, ready, train_for)


def main(config: Config) -> None:
    variants = {n: v for n, v in VARIANTS.items() if not (config.skip_compile and v["compile"])}
    speeds, ready = take_turns(train_in_turns, config, variants, config.rounds, config.seconds)
    first = next(iter(ready.values()))
    print(
        f"{first['n_parameters']:,} parameters, {config.max_tokens} tokens an update, {first['device']}, "
        f"{config.rounds} rounds of {config.seconds:g} s"
    )

    print(f"{'':20} {'padding':>8} {'target tokens/s':>16} {'times the first':>18} {'warm-up':>9}")
    for name, values in speeds.items():
        times_the_first = ratio_text(speeds, name, to=next(iter(speeds)))
        print(
            f"{name:20} {ready[name]['padding']:8.1%} {statistics.median(values):16,.0f} "
            f"{times_the_first} {ready[name]['warm_up_seconds']:7.0f} s"
        )
    if config.output:
        Path(config.output).write_text(json.dumps({"tokens_per_second": speeds, "ready": ready}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True, description=__doc__))
