"""Training speed of the LSTM translator: its decoder in one call, step by step, and as a plain loop, in one run.

    python -m benchmarks.lstm_speed --train_files corpus.de.gz corpus.en.gz

The first three variants train the recipe de-en-lstm with the script's own update; "half its own" takes every other
input token, by chance, from the model. The plain loop is the same network written the usual way: LSTM, attention
and output layer one position at a time, torch's cross-entropy over all logits; on the same batches, and on batches
of as many sentences in random order. All take turns (benchmarks/turns.py); on the same batches, the ratio of
tokens/s is that of updates.
"""

import itertools
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from benchmarks.turns import ratio_text, serve_turns, take_turns

VARIANTS = {
    "one call": {"teacher_forcing_ratio": 1.0},
    "step by step": {"teacher_forcing_ratio": 1.0, "step_by_step": True},
    "step by step, half its own": {"teacher_forcing_ratio": 0.5},
    "plain loop, same batches": {"plain": True},
    "plain loop, random batches": {"plain": True, "random": True},
}


@dataclass(frozen=True)
class Config:
    train_files: tuple[str, ...] = ()  # corpus to train on; without it the embedded phrasebook
    precision: str = "bf16"  # of all variants: no, bf16, or fp16 on a GPU without bf16
    max_tokens: int = 4096  # token budget of an update, padding counted
    threads: int = 0  # on a CPU; 0: one a core
    rounds: int = 5  # turns that each variant takes
    seconds: float = 15.0  # training time of a turn
    profile_updates: int = 0  # updates of each variant to profile after the turns; its table goes to stdout
    output: str = ""  # JSON file to write the rounds to


class PlainSeq2Seq(nn.Module):
    """The reference network as a plain loop: nn.LSTM encoder, decoder one position at a time, all logits kept."""

    def __init__(
        self, source_vocab_size: int, target_vocab_size: int, e: int, h: int, n_layers: int, dropout: float
    ):
        super().__init__()
        self.source_embedding, self.target_embedding = (
            nn.Embedding(source_vocab_size, e),
            nn.Embedding(target_vocab_size, e),
        )
        options = {"num_layers": n_layers, "dropout": dropout, "batch_first": True}
        self.encoder = nn.LSTM(e, h, bidirectional=True, **options)
        self.initial_hidden, self.initial_cell, self.memory_projection = (nn.Linear(2 * h, h) for _ in range(3))
        self.decoder = nn.LSTM(e, h, **options)
        self.output = nn.Linear(2 * h, target_vocab_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """source (B, S), target (B, T) -> logits (B, T, V)."""
        memory, (hidden, cell) = self.encoder(self.dropout(self.source_embedding(source)))
        memory = self.memory_projection(memory)  # (B, S, H)
        pairs = [torch.cat([state[0::2], state[1::2]], 2) for state in (hidden, cell)]  # the two directions
        state = (torch.tanh(self.initial_hidden(pairs[0])), torch.tanh(self.initial_cell(pairs[1])))
        padding = (source == 0)[:, None, :]
        logits = []
        for tokens in target.unbind(1):
            output, state = self.decoder(self.dropout(self.target_embedding(tokens[:, None])), state)
            scores = torch.bmm(output, memory.transpose(1, 2)).masked_fill(padding, -torch.inf)
            context = torch.bmm(scores.softmax(-1), memory)
            logits.append(self.output(self.dropout(torch.cat([output, context], 2))))
        return torch.cat(logits, 1)


def train_in_turns(connection: Connection, config: Config, variant: dict) -> None:
    """The worker: gets ready, then trains for `seconds` whenever told to; answers with target tokens/s."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = config.precision  # before Accelerate is imported: it is read once
    import train_translation as script
    from data.text.batching import BatchPlanner, Shape, Update
    from data.text.corpus import TranslationCorpus, load_text_splits
    from training.cpu_memory import keep_freed_memory
    from training.run import open_accelerator

    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    settings = replace(script.RECIPES["de-en-lstm"][1], max_tokens=config.max_tokens)
    accelerator = open_accelerator()
    splits = load_text_splits("phrasebook", "", ("de", "en"), train_files=config.train_files)
    corpus = TranslationCorpus(
        splits,
        kind=settings.tokenizer,
        vocab_size=settings.vocab_size,
        min_frequency=settings.min_frequency,
        lowercase=False,
        joint=False,
        max_len=settings.max_len,
    )
    pairs, lengths = corpus.train, (corpus.train.source.lengths, corpus.train.target.lengths)
    source_size, target_size = (tokenizer.vocab_size for tokenizer in corpus.tokenizers.values())
    planner = BatchPlanner(pairs, config.max_tokens, device=accelerator.device)
    sentences = len(pairs) // len(planner.plan_epoch(0))
    torch.manual_seed(0)
    if "plain" in variant:
        model = PlainSeq2Seq(
            source_size,
            target_size,
            settings.embedding_dim,
            settings.hidden_size,
            settings.n_layers,
            settings.dropout,
        )
    else:
        model = script.build_model(settings, source_size, target_size)
        for name, value in variant.items():
            setattr(model, name, value)
    optimizer = torch.optim.AdamW(model.parameters(), fused=accelerator.mixed_precision != "fp16")
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # as training/setup.py has it
    model, optimizer = accelerator.prepare(model, optimizer)

    steps = itertools.count()

    def train_update(update) -> None:
        script.train_update(accelerator, model, optimizer, settings, None, update, next(steps), 1e-4)

    def plain_update(update) -> None:
        source, target, labels = update.micro_batch(0, 1, accelerator.device)
        with accelerator.autocast():
            logits = model(source, target)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def random_batches(epoch: int):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(epoch)).numpy()
        for start in range(0, len(order), sentences):
            chosen = order[start : start + sentences]
            source_lengths, target_lengths = (side[chosen] + 1 for side in lengths)  # the end mark
            shape = Shape(int(source_lengths.max()), int(target_lengths.max()))
            yield Update(
                planner.gathered, torch.from_numpy(chosen).to(accelerator.device), shape, int(target_lengths.sum())
            )

    update_once = plain_update if "plain" in variant else train_update
    plan = random_batches if "random" in variant else planner.plan_epoch

    def updates():
        for epoch in range(10**6):
            yield from plan(epoch)

    stream = updates()
    synchronize = torch.cuda.synchronize if accelerator.device.type == "cuda" else lambda: None

    def train_for(seconds: float) -> float:
        synchronize()
        started, tokens, done = time.perf_counter(), 0, 0
        while time.perf_counter() - started < seconds or done < 2:
            update = next(stream)
            update_once(update)
            tokens, done = tokens + update.target_tokens, done + 1
            if done % 20 == 0:
                synchronize()
        synchronize()
        return tokens / (time.perf_counter() - started)

    model.train()
    train_for(min(config.seconds, 5.0))  # warm-up: allocator, caches
    table = ""
    if config.profile_updates:
        with torch.profiler.profile() as profiler:
            for _ in range(config.profile_updates):
                update_once(next(stream))
            synchronize()
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)
    ready = {
        "padding": planner.padding_share(list(plan(0))),
        "sentences": sentences,
        "vocabularies": [source_size, target_size],
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "device": str(accelerator.device),
        "threads": torch.get_num_threads(),
        "profile": table,
    }
    serve_turns(connection, ready, train_for)


def main(config: Config) -> None:
    speeds, ready = take_turns(train_in_turns, config, VARIANTS, config.rounds, config.seconds)
    first = ready["one call"]
    print(
        f"{first['n_parameters']:,} parameters, {first['sentences']} sentences an update, {config.precision} "
        f"precision, {first['device']} ({first['threads']} threads), "
        f"{config.rounds} rounds of {config.seconds:g} s"
    )
    print(f"{'':26} {'padding':>8} {'target tokens/s':>16} {'one call, times as fast':>26}")
    for name, values in speeds.items():
        print(
            f"{name:26} {ready[name]['padding']:8.1%} {statistics.median(values):16,.0f} "
            f"{ratio_text(speeds, 'one call', to=name):>26}"
        )
    for name, values in ready.items():
        if values["profile"]:
            print(f"\n{name}: {config.profile_updates} updates\n{values['profile']}")
    if config.output:
        Path(config.output).write_text(json.dumps({"tokens_per_second": speeds, "ready": ready}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True, description=__doc__))
