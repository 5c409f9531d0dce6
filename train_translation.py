"""Train an encoder-decoder Transformer to translate, from scratch, on parallel text.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_translation.py demo
    accelerate launch --config_file accelerate_configs/t4.yaml train_translation.py opus-en-it
    accelerate launch --config_file accelerate_configs/cpu_bf16.yaml train_translation.py opus-en-it \
        --train_files corpus.en.gz corpus.it.gz

Two CPU cores (results/): demo BLEU 98.6 in 90 seconds; Europarl en-it BLEU 25.2 after 18 minutes' training.
Every run ends with sacreBLEU and chrF of beam search on detokenised, cased text of the whole test split, and
leaves its translations beside the references, so that the `sacrebleu` command gives the same score.
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import sacrebleu
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, set_seed
from tyro.conf import Suppress

from data.batching import BatchPlanner, Update, collate
from data.errors import DataError
from data.parallel_text import ParallelText
from data.tokenization import BOS_ID, EOS_ID, PAD_ID, TextTokenizer
from data.translation import TokenizedPairs, TranslationCorpus, load_splits
from models.decoding import SpecialTokens, decode_in_batches, greedy_search
from models.transformer import Transformer
from training.checkpoints import (
    best_checkpoint,
    check_files,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.cli import run_script
from training.ema import EMA
from training.errors import UsageError
from training.figures import plot_attention, plot_curves, plot_length_histogram
from training.lr_finder import lr_range_test, report_lr_range_test
from training.metrics import MetricWindow
from training.profiling import profiler
from training.run import Run, close_accelerator, open_accelerator, sum_over_processes
from training.schedules import one_cycle, set_lr

SPECIAL = SpecialTokens(PAD_ID, begin=BOS_ID, end=EOS_ID)


@dataclass(frozen=True)
class Config:
    recipe: Suppress[str]  # name of the recipe, for the run's folder and the tracker
    # --- data
    dataset: str = "Helsinki-NLP/opus_books"  # data set on the hub, or "phrasebook" (embedded)
    dataset_config: str = "en-it"  # configuration of the data set on the hub
    languages: tuple[str, str] = ("en", "it")  # source and target, as the data set names them
    data_dir: str = ""  # folder with the data set's parquet or line-aligned files, instead of the hub
    train_files: tuple[str, ...] = ()  # own corpus: SOURCE TARGET (a sentence a line), or one .tsv or .jsonl
    valid_files: tuple[str, ...] = ()  # likewise; without them, split off the training files by hash
    test_files: tuple[str, ...] = ()  # likewise
    valid_fraction: float = 0.02  # share of the sources split off for validation
    test_fraction: float = 0.02  # share of the sources split off for the test
    # --- tokens
    tokenizer: Literal["bpe", "unigram", "word"] = "bpe"  # kind of vocabulary
    vocab_size: int = 8000  # most tokens of a vocabulary
    min_frequency: int = 1  # rarest merge or word that gets a token
    lowercase: bool = False  # train on and evaluate against lower-cased text
    bpe_dropout: float = 0.0  # chance to skip a merge in training, drawn anew each epoch
    max_len: int = 128  # training pairs with more tokens on a side are dropped; test pairs never are
    # --- batches
    batching: Literal["bucketed", "sorted", "padded"] = "bucketed"  # how pairs are put together
    max_tokens: int = 4096  # rows x longer side of a micro-batch in one process, padding counted
    gradient_accumulation_steps: int = 1  # micro-batches of a process in an update
    # --- model
    d_model: int = 512  # width
    n_heads: int = 8  # attention heads
    n_encoder_layers: int = 6  # encoder layers
    n_decoder_layers: int = 6  # decoder layers
    d_ff: int = 2048  # width inside the feed-forward blocks
    dropout: float = 0.1  # on embeddings and on every residual branch
    attention_dropout: float = 0.0  # on attention weights
    activation_dropout: float = 0.0  # inside the feed-forward blocks
    pre_norm: bool = True  # normalise before each block rather than after it
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"  # position embeddings
    tied_embeddings: Literal["none", "output", "three-way"] = "three-way"  # three-way: one joint vocabulary
    # --- optimization
    epochs: int = 18  # passes over the training pairs
    max_train_steps: int = 0  # updates in all, instead of epochs; 0: by epochs
    lr: float = 1e-3  # peak of the one-cycle schedule
    pct_start: float = 0.2  # share of the updates that the rate rises for
    beta2: float = 0.98  # AdamW's second decay
    weight_decay: float = 0.01  # AdamW's, on matrices only
    label_smoothing: float = 0.1  # share of the target spread evenly over the vocabulary
    max_grad_norm: float = 1.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: float = 0.998  # moving average of the weights, which is what is evaluated; 0: none
    patience: int = 0  # end after so many validations without a better BLEU; 0: never
    seed: int = 0  # of the initial weights, the order of the data and dropout
    # --- evaluation
    validate_every: int = 0  # updates between validations; 0: once an epoch
    valid_sentences: int = 1000  # validation pairs that are translated (greedily) for BLEU
    beam_size: int = 5  # beams on the test split
    length_penalty: float = 1.0  # power of the length in the score of a beam
    eval_batch_size: int = 64  # sentences decoded at a time
    eval_only: bool = False  # only evaluate the best checkpoint of --resume, or of --output_dir
    # --- run
    output_dir: str = ""  # where the run is written; default runs/translation/<recipe>
    resume: str = ""  # "latest", a run folder or a checkpoint to go on from
    checkpointing_steps: int = 0  # updates between checkpoints; 0: one after each validation
    checkpoints_total_limit: int = 2  # newest checkpoints that are kept, besides the best; 0: all
    log_every: int = 20  # updates between log lines
    find_lr: bool = False  # run a learning-rate range test, suggest a rate and end
    compile: bool = False  # torch.compile the model
    profile: bool = False  # profile a few updates: table and trace in <output_dir>/profile
    tracker: Literal["wandb", "none"] = "wandb"  # where metrics go besides metrics.jsonl


RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "English to Italian phrases generated by code; no download, two minutes on two CPU cores",
        Config(
            recipe="demo", dataset="phrasebook", vocab_size=1000, d_model=128, n_heads=4, d_ff=256,
            n_encoder_layers=3, n_decoder_layers=3, dropout=0.0, epochs=4, lr=4e-3, max_tokens=1024,
            ema_decay=0.99, valid_sentences=200,
        ),
    ),
    "opus-en-it": (
        "opus_books English to Italian: 6+6 layers, d_model 512, 8 heads",
        Config(recipe="opus-en-it", max_tokens=8192),
    ),
    "opus-en-fr": (
        "opus_books English to French: three-way tied embeddings, d_ff 128",
        Config(recipe="opus-en-fr", dataset_config="en-fr", languages=("en", "fr"), d_ff=128, max_tokens=8192),
    ),
}  # fmt: skip


def build_model(config: Config, source_vocab_size: int, target_vocab_size: int) -> Transformer:
    if config.d_model % config.n_heads:
        raise UsageError(f"--d_model {config.d_model} is not a multiple of --n_heads {config.n_heads}")
    return Transformer(
        source_vocab_size, target_vocab_size, d_model=config.d_model, n_heads=config.n_heads,
        n_encoder_layers=config.n_encoder_layers, n_decoder_layers=config.n_decoder_layers, d_ff=config.d_ff,
        dropout=config.dropout, attention_dropout=config.attention_dropout,
        activation_dropout=config.activation_dropout, pre_norm=config.pre_norm, positions=config.positions,
        tied_embeddings=config.tied_embeddings, pad_id=PAD_ID,
    )  # fmt: skip


def train_update(
    accelerator: Accelerator, model, optimizer, update: Update, pairs: TokenizedPairs, config: Config, lr: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimizer update; this process takes its share of the micro-batches.

    Returns its sums of the smoothed loss and of the plain negative log-likelihood (2,), and the gradient norm.
    """
    set_lr(optimizer, lr)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    parts = update.micro_batches(n_parts)[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(2, device=accelerator.device)
    for sentences, counted in parts:
        batch = collate(pairs.source, pairs.target, sentences, update.shape, counted, accelerator.device)
        with accelerator.accumulate(model):
            smoothed, nll = model(*batch, config.label_smoothing)
            # The mean over all target tokens of the update: DDP averages over processes and backward()
            # divides by the accumulation steps, so the sum is scaled up by both.
            accelerator.backward(smoothed * (n_parts / update.target_tokens))
            if accelerator.sync_gradients:
                gradient_norm = accelerator.clip_grad_norm_(
                    model.parameters(),
                    config.max_grad_norm or math.inf,  # inf: only measure
                )
            optimizer.step()
            optimizer.zero_grad()
        sums += torch.stack([smoothed.detach(), nll])
    return sums, gradient_norm


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: Transformer, pairs: TokenizedPairs, text: ParallelText,
    tokenizer: TextTokenizer, config: Config, beam_size: int, n_translated: int | None = None,
) -> tuple[dict, list[str]]:  # fmt: skip
    """Negative log-likelihood per token (nats) of all pairs; BLEU and chrF of the first n_translated.

    Every process takes a share and all get the same answer: (metrics, hypotheses in the order of the text).
    `model` is a plain one, not the prepared. Decoding is in fp32 whatever the training precision.
    """
    model.eval()
    rank, n_processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    longest = int(max(pairs.source.lengths.max(), pairs.target.lengths.max())) + 1
    planner = BatchPlanner(
        pairs.source.lengths, pairs.target.lengths, max(config.max_tokens, longest), n_processes, "sorted"
    )
    updates = planner.plan_epoch(0)
    nll = torch.zeros((), device=device)
    for update in updates:
        sentences, counted = update.micro_batches(n_processes)[rank]
        with accelerator.autocast():
            nll += model(*collate(pairs.source, pairs.target, sentences, update.shape, counted, device))[1]
    nll = float(sum_over_processes(accelerator, nll)) / sum(u.target_tokens for u in updates)

    # Each sentence goes to one process, and comes back with its number: counted once on any of them.
    n_translated = min(n_translated or len(pairs), len(pairs))
    mine = range(rank, n_translated, n_processes)
    outputs = decode_in_batches(
        model, [[*pairs.source[i].tolist(), EOS_ID] for i in mine], SPECIAL, beam_size=beam_size,
        length_penalty=config.length_penalty, batch_size=config.eval_batch_size, device=device,
    )  # fmt: skip
    translated = list(zip(mine, tokenizer.decode(outputs), strict=True))
    if n_processes > 1:
        translated = gather_object(translated)
    hypotheses = [hypothesis for _, hypothesis in sorted(translated)]
    if len(hypotheses) != n_translated:
        raise RuntimeError(f"{len(hypotheses)} translations of {n_translated} sentences were gathered")
    references = text.targets[:n_translated]
    if config.lowercase:
        references = [reference.lower() for reference in references]
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    metrics = {
        "nll": nll,
        "bleu": bleu.corpus_score(hypotheses, [references]).score,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "n_sentences": len(hypotheses),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
    }
    return metrics, hypotheses


def numbers(metrics: dict, prefix: str) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in metrics.items() if not isinstance(value, str)}


def find_lr(accelerator, model, optimizer, planner, corpus: TranslationCorpus, config: Config) -> None:
    """Range test over the first updates; prints the suggestion and writes figures/lr_range_test.png."""
    pairs = corpus.training_pairs(0)
    updates = itertools.cycle(planner.plan_epoch(0))

    def update_at(lr: float) -> torch.Tensor:
        update = next(updates)
        sums, _ = train_update(accelerator, model, optimizer, update, pairs, config, lr)
        return sum_over_processes(accelerator, sums)[0] / update.target_tokens

    result = lr_range_test(update_at, accelerator=accelerator, model=model, optimizer=optimizer)
    report_lr_range_test(accelerator, result, Path(config.output_dir))
    close_accelerator(accelerator)


def write_figures(run: Run, model: Transformer, corpus: TranslationCorpus, planner: BatchPlanner) -> list[Path]:
    """Curves, length histogram and the attention of three test sentences, as PNG below figures/."""
    figures = plot_curves(
        run.metrics_path, run.figures_dir,
        {"loss": ["train/loss", "train/nll", "valid/nll"], "lr": ["lr"], "bleu": ["valid/bleu"],
         "throughput": ["train/tokens_per_second"]},
    )  # fmt: skip
    lengths = {"source": planner.source_lengths, "target": planner.target_lengths}
    batches = dict(zip(("real", "padding"), planner.real_and_padding(planner.plan_epoch(0)), strict=True))
    figures.append(run.figures_dir / "lengths.png")
    plot_length_histogram(lengths, batches, figures[-1])
    middling = np.argsort(np.abs(corpus.test.source.lengths - 10), kind="stable")[:3]
    for i, sentence in enumerate(middling.tolist()):
        source_ids = [*corpus.test.source[sentence].tolist(), EOS_ID]
        source = torch.tensor([source_ids], device=run.accelerator.device)
        output = greedy_search(model, source, SPECIAL)[0]
        weights = model.cross_attention_weights(source, torch.tensor([[BOS_ID, *output]], device=source.device))
        figures.append(run.figures_dir / f"attention_{i + 1}.png")
        source_tokens = corpus.source_tokenizer.tokens(source_ids)
        target_tokens = corpus.target_tokenizer.tokens([*output, EOS_ID])
        plot_attention(weights[0].cpu().numpy(), source_tokens, target_tokens, figures[-1])
    return figures


def main(config: Config) -> None:
    config = replace(config, output_dir=config.output_dir or f"runs/translation/{config.recipe}")
    accelerator = open_accelerator(config.gradient_accumulation_steps)
    set_seed(config.seed)

    # --- data and model, before anything is written
    splits = load_splits(
        config.dataset, config.dataset_config, config.languages, data_dir=config.data_dir or None,
        train_files=config.train_files, valid_files=config.valid_files, test_files=config.test_files,
        valid_fraction=config.valid_fraction, test_fraction=config.test_fraction,
    )  # fmt: skip
    joint = config.tied_embeddings == "three-way"
    with accelerator.local_main_process_first():  # the others find the tokens in the cache
        corpus = TranslationCorpus(
            splits, kind=config.tokenizer, vocab_size=config.vocab_size, min_frequency=config.min_frequency,
            lowercase=config.lowercase, joint=joint, max_len=config.max_len, bpe_dropout=config.bpe_dropout,
            seed=config.seed,
        )  # fmt: skip
    model = build_model(config, corpus.source_tokenizer.vocab_size, corpus.target_tokenizer.vocab_size)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps

    def plan(pairs: TokenizedPairs) -> BatchPlanner:
        return BatchPlanner(
            pairs.source.lengths, pairs.target.lengths, config.max_tokens, n_parts, config.batching, config.seed
        )

    planner = plan(corpus.training_pairs(0))
    first_epoch = planner.plan_epoch(0)
    total_steps = config.max_train_steps or config.epochs * len(first_epoch)

    checkpoint = None
    if config.resume or config.eval_only:
        resume = config.resume or config.output_dir
        checkpoint = find_checkpoint(resume, Path(config.output_dir), prefer_best=config.eval_only)
    if checkpoint:
        check_files(checkpoint, {f"{side}_tokenizer.json": t.to_json() for side, t in corpus.tokenizers.items()})
    ema = EMA(model.to(accelerator.device), config.ema_decay) if config.ema_decay > 0 else None
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
         {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}],
        lr=config.lr, betas=(0.9, config.beta2),
        fused=accelerator.mixed_precision != "fp16",  # fused hides from Accelerate that fp16 skipped a step
    )  # fmt: skip
    if ema is None and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise UsageError("a sharded model cannot decode: its averaged copy does, so --ema_decay must be above 0")
    if config.compile:
        model.compile(dynamic=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    evaluated = ema.module if ema else accelerator.unwrap_model(model)
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0, "best": None, "validations_since_best": 0}
    window = MetricWindow(accelerator, ("train/loss", "train/nll"), rate="train/tokens_per_second")
    set_seed(config.seed, device_specific=True)  # from here on dropout differs between processes
    if checkpoint:
        state = load_checkpoint(accelerator, model, checkpoint, ema)
        window.load(state["window"])
    if config.find_lr:
        return find_lr(accelerator, model, optimizer, planner, corpus, config)

    best_is = {"valid/bleu": "max", "valid/nll": "min"}
    run = Run(accelerator, "translation", config, checkpoint, state, best_is)
    n_shapes = len({(update.shape, len(update.sentences)) for update in first_epoch})
    run.print(
        f"{len(corpus.train):,} training pairs ({corpus.n_too_long:,} over --max_len {config.max_len} dropped), "
        f"{len(corpus.valid):,} validation, {len(corpus.test):,} test pairs; {splits.counts or 'embedded'}\n"
        f"{sum(p.numel() for p in evaluated.parameters()):,} parameters; {total_steps:,} updates, "
        f"{len(first_epoch)} an epoch in {n_shapes} shapes; {planner.padding_share(first_epoch):.1%} padding"
    )

    def save() -> Path:
        files = {f"{name}_tokenizer.json": tokenizer.to_json() for name, tokenizer in corpus.tokenizers.items()}
        saved = {**state, **run.state(), "window": window.state(), "config": asdict(config)}
        return save_checkpoint(accelerator, model, run.output_dir, saved, ema=ema, files=files,
                    total_limit=config.checkpoints_total_limit)  # fmt: skip

    def validate(epoch: float) -> None:
        """Log BLEU and loss of the validation split; note the best so far; show some translations."""
        metrics, hypotheses = evaluate(
            accelerator, evaluated, corpus.valid, splits.valid, corpus.target_tokenizer, config,
            beam_size=1, n_translated=config.valid_sentences,
        )  # fmt: skip
        state["validations_since_best"] += 1
        best = state["best"] or {"valid/bleu": -1.0, "valid/nll": 0.0}
        if (metrics["bleu"], -metrics["nll"]) > (best["valid/bleu"], -best["valid/nll"]):
            state["best"] = {"step": state["step"], **numbers(metrics, "valid")}
            state["validations_since_best"] = 0
        run.log(numbers(metrics, "valid"), state["step"], epoch)
        run.print(f"step {state['step']:,}: validation BLEU {metrics['bleu']:.2f}, loss {metrics['nll']:.3f}")
        run.log_samples(splits.valid.sources, hypotheses, splits.valid.targets, state["step"])

    def due(every: int) -> bool:
        return every > 0 and state["step"] % every == 0

    last_checkpoint, out_of_patience = checkpoint, 0 < config.patience <= state["validations_since_best"]
    done = config.eval_only or state["step"] >= total_steps or out_of_patience
    bar = run.progress_bar(total_steps, state["step"])
    with bar, profiler(run.output_dir, accelerator, enabled=config.profile) as profile:
        window.start()
        while not done:
            pairs = corpus.training_pairs(state["epoch"])
            updates = (plan(pairs) if config.bpe_dropout else planner).plan_epoch(state["epoch"])
            for update in updates[state["updates_in_epoch"] :]:
                lr = one_cycle(state["step"], total_steps=total_steps, max_lr=config.lr, pct_start=config.pct_start)
                sums, gradient_norm = train_update(accelerator, model, optimizer, update, pairs, config, lr)
                state["updates_in_epoch"] += 1
                if accelerator.optimizer_step_was_skipped:  # an fp16 overflow: not an update
                    window.skip(sums, state["step"], last_checkpoint)
                    continue
                state["step"] += 1
                window.add(sums, update.target_tokens)
                if ema:
                    ema.update(accelerator.unwrap_model(model))
                profile.step()
                bar.update()

                done = state["step"] == total_steps
                ends_epoch = state["updates_in_epoch"] == len(updates)
                validates = done or (due(config.validate_every) if config.validate_every else ends_epoch)
                saves = done or (due(config.checkpointing_steps) if config.checkpointing_steps else validates)
                logs = done or due(config.log_every)
                stops = run.stop_requested(agree=logs)
                epoch = state["epoch"] + state["updates_in_epoch"] / len(updates)
                if logs or validates or saves or stops:
                    window.raise_if_diverged(state["step"], gradient_norm, last_checkpoint)
                if logs:
                    values = window.read() | {"train/gradient_norm": float(gradient_norm), "lr": lr}
                    run.log(values, state["step"], epoch)
                    speed = f"{values['train/tokens_per_second']:,.0f} tokens/s"
                    bar.set_postfix_str(f"loss {values['train/loss']:.3f}, lr {lr:.1e}, {speed}", refresh=False)
                window.stop()
                if validates:
                    validate(epoch)
                    model.train()
                    saves = saves or state["validations_since_best"] == 0  # the best is always kept
                    done = done or 0 < config.patience <= state["validations_since_best"]
                if saves or stops:
                    last_checkpoint = save()
                if stops:
                    run.exit_after_signal(last_checkpoint)
                if done:
                    break
                window.start()
            else:
                state["epoch"], state["updates_in_epoch"] = state["epoch"] + 1, 0

    # --- the best checkpoint on the test split, by beam search
    run.release_signals()
    load_weights(evaluated, (not config.eval_only and best_checkpoint(run.output_dir)) or last_checkpoint)
    metrics, hypotheses = evaluate(
        accelerator, evaluated, corpus.test, splits.test, corpus.target_tokenizer, config, config.beam_size
    )
    run.log(numbers(metrics, "test"), state["step"], state["epoch"])
    if accelerator.is_main_process:
        folder = run.output_dir / "translations"
        folder.mkdir(exist_ok=True)
        for name, lines in (("src", splits.test.sources), ("ref", splits.test.targets), ("hyp", hypotheses)):
            (folder / f"test.{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        figures = write_figures(run, evaluated, corpus, planner)
        run.log_figures(figures, state["step"])
    run.log_samples(splits.test.sources, hypotheses, splits.test.targets, state["step"], n=5)
    summary = {f"test/{name}": value for name, value in metrics.items()}
    summary |= {f"best/{name}": value for name, value in (state["best"] or {}).items()}
    run.finish(summary, window.train_seconds, evaluated)
    run.print(f"test BLEU {metrics['bleu']:.2f}  {metrics['bleu_signature']}\n"
              f"test chrF {metrics['chrf']:.2f}  {metrics['chrf_signature']}\n"
              f"{metrics['n_sentences']:,} test sentences; translations in {run.output_dir / 'translations'}, "
              f"figures in {run.figures_dir}")  # fmt: skip


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
