"""Train an encoder-decoder Transformer, or an LSTM with attention, to translate, from scratch, on parallel text.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_translation.py demo
    accelerate launch --config_file accelerate_configs/t4.yaml train_translation.py opus-en-it
    accelerate launch --config_file accelerate_configs/cpu_bf16.yaml train_translation.py opus-en-it \
        --train_files corpus.en.gz corpus.it.gz
    accelerate launch --config_file accelerate_configs/cpu_bf16.yaml train_translation.py de-en-lstm

Two CPU cores (results/): demo BLEU 98.6 in 90 seconds; Europarl en-it BLEU 25.2 after 18 minutes' training. One
core, Tatoeba de-en: de-en-lstm BLEU 45.1 after 19 minutes, de-en-lstm-strong 51.7 after 36, de-en 48.5 after 63.
Every run ends with sacreBLEU and chrF of beam search on detokenised, cased text of the whole test split, and
leaves its translations beside the references, so that the `sacrebleu` command gives the same score.
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tyro.conf import Suppress

from data.errors import DataError
from data.seeding import Stream, seed_global_generators
from data.text.batching import BatchPlanner, Update, collate
from data.text.corpus import TokenizedPairs, TranslationCorpus, evenly_spaced, load_splits
from data.text.parallel_text import ParallelText
from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID, TextTokenizer
from figures.translation import attention_examples, plot_translation_run
from models.decoding import LengthNormalization, SpecialTokens, decode_in_batches
from models.lstm import Seq2SeqLSTM
from models.transformer import Transformer
from training.bleu_tokenizer import BleuTokenizer, choose_bleu_tokenizer
from training.checkpoints import (
    best_checkpoint,
    check_files,
    find_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from training.cli import PathFlag, flags_given, run_script
from training.compilation import compile_model
from training.ema import EMA
from training.errors import UsageError
from training.lr_finder import lr_range_test, report_lr_range_test
from training.metrics import MetricWindow
from training.model_size import build_within_memory
from training.muon import MuonAdamW, muon_groups
from training.profiling import profiler
from training.ranges import (
    BatchSize,
    BeamSize,
    Count,
    Epochs,
    GradientNorm,
    Layers,
    LearningRate,
    LengthPower,
    LengthRatio,
    Parts,
    PositiveInt,
    Seed,
    Share,
    ShareBelowOne,
    TokenBudget,
    VocabularySize,
    WeightDecay,
    Width,
)
from training.resuming import EpochPlan, begin_next_epoch, epochs_done, flag_names, place_in_epoch, settings_of_run
from training.run import Run, close_accelerator, open_accelerator, own_folder, sum_over_processes
from training.schedules import one_cycle, set_lr
from training.translation_scores import (
    Translations,
    is_better,
    numbers,
    report_translations,
    score_translations,
    scores_without_near_duplicates,
    translate_in_shares,
)

SPECIAL = SpecialTokens(PAD_ID, begin=BOS_ID, end=EOS_ID)


@dataclass(frozen=True)
class Config:
    recipe: Suppress[str]  # name of the recipe, for the run's folder and the tracker
    # --- data
    dataset: str = "Helsinki-NLP/opus_books"  # data set on the hub, or "phrasebook" (embedded)
    dataset_config: str = "en-it"  # configuration of the data set on the hub
    dataset_revision: str = ""  # branch, tag or commit of the data set on the hub; default: its main branch
    languages: tuple[str, str] = ("en", "it")  # source and target, as the data set names them
    data_dir: PathFlag = ""  # folder with the data set's parquet or line-aligned files, instead of the hub
    train_files: tuple[PathFlag, ...] = ()  # own corpus: SOURCE TARGET (a sentence a line), or .tsv, .csv, .json[l]
    valid_files: tuple[PathFlag, ...] = ()  # likewise; without them, split off the training files by hash
    test_files: tuple[PathFlag, ...] = ()  # likewise
    extra_test_files: tuple[PathFlag, ...] = ()  # a further test set, scored beside the other: test_extra/bleu
    valid_fraction: ShareBelowOne = 0.02  # share of the sources split off for validation
    test_fraction: ShareBelowOne = 0.02  # share of the sources split off for the test
    max_length_ratio: LengthRatio = 0.0  # longer side to shorter, in characters; 0: three times the usual ratio
    # --- tokens
    tokenizer: Literal["bpe", "unigram", "word"] = "bpe"  # kind of vocabulary
    vocab_size: VocabularySize = 8000  # most tokens of a vocabulary
    min_frequency: PositiveInt = 1  # rarest merge or word that gets a token
    lowercase: bool = False  # all text is put into lower case, references too
    mask_numbers: bool = False  # each number is one token, <num>; the source's are copied back in their order
    bpe_dropout: ShareBelowOne = 0.0  # chance to skip a merge in training, drawn anew each epoch
    max_len: PositiveInt = 128  # training pairs with more tokens on a side are dropped; test pairs never are
    # --- batches
    batching: Literal["bucketed", "sorted", "padded"] = "bucketed"  # how pairs are put together
    max_tokens: TokenBudget = 4096  # rows x longer side of a micro-batch in one process, padding counted
    gradient_accumulation_steps: Parts = 1  # micro-batches of a process in an update
    # --- model
    model: Literal["transformer", "lstm"] = "transformer"  # the other one's options are refused
    dropout: ShareBelowOne = 0.1  # on embeddings; on residual branches, or between LSTM layers and before the last
    tied_embeddings: Literal["none", "output", "three-way"] = "three-way"  # three-way: one joint vocabulary
    d_model: Width = 512  # Transformer: width
    n_heads: Width = 8  # Transformer: attention heads
    n_encoder_layers: Layers = 6  # Transformer: encoder layers
    n_decoder_layers: Layers = 6  # Transformer: decoder layers
    d_ff: Width = 2048  # Transformer: width inside the feed-forward blocks
    attention_dropout: ShareBelowOne = 0.0  # Transformer: on attention weights
    activation_dropout: ShareBelowOne = 0.0  # Transformer: inside the feed-forward blocks
    pre_norm: bool = True  # Transformer: normalise before each block rather than after it
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"  # Transformer: position embeddings
    embedding_dim: Width = 64  # LSTM: width of the embeddings
    hidden_size: Width = 128  # LSTM: width of the hidden states, in each direction of the encoder
    n_layers: Layers = 2  # LSTM: layers of the encoder, and as many of the decoder
    attentional_layer: bool = False  # LSTM: a layer with tanh between attention and output projection
    early_attention: bool = False  # LSTM: the decoder's first layer asks, the context goes into the others too
    input_feeding: bool = False  # LSTM: the attentional layer's output joins the next input; step by step
    teacher_forcing_ratio: Share = 1.0  # LSTM: chance of the true token as input, else its own; < 1: step by step
    # --- optimization
    epochs: Epochs = 18  # passes over the training pairs; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for all matrices but embeddings and output
    lr: LearningRate = 1e-3  # peak of the one-cycle schedule
    pct_start: Share = 0.2  # share of the updates that the rate rises for
    beta2: ShareBelowOne = 0.98  # AdamW's second decay
    weight_decay: WeightDecay = 0.01  # AdamW's, on matrices only
    label_smoothing: ShareBelowOne = 0.1  # share of the target spread evenly over the vocabulary
    max_grad_norm: GradientNorm = 1.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.998  # moving average of the weights, which is what is evaluated; 0: none
    patience: Count = 0  # end after so many validations without a better BLEU (below 1: chrF); 0: never
    seed: Seed = 0  # of the initial weights, the order of the data and dropout
    # --- evaluation
    bleu_tokenizer: BleuTokenizer = "auto"  # sacreBLEU's; auto: as the sacrebleu command for the target language
    validate_every: Count = 0  # updates between validations; 0: once an epoch
    valid_sentences: Count = 1000  # validation pairs that are translated (greedily) for BLEU; 0: all
    beam_size: BeamSize = 5  # beams on the test split
    length_penalty: LengthPower = 1.0  # power of the length that a translation's log-probability is divided by
    tune_length_penalty: tuple[LengthPower, ...] = ()  # powers to try on the validation split, the best is tested
    length_normalization: LengthNormalization = "power"  # length: n tokens, or (6 + n) / 6 as in GNMT
    eval_batch_size: BatchSize = 64  # most sentences decoded at a time
    eval_max_len: TokenBudget = 1024  # longer validation and test sentences are cut after so many tokens
    test_sentences: Count = 0  # test pairs that are translated, from all over the split; 0: all
    final_test: bool = True  # at the end, evaluate the best checkpoint on the test split
    eval_max_tokens: TokenBudget = 32768  # most tokens decoded at a time: beams x (source + longest translation)
    eval_only: bool = False  # only evaluate the best checkpoint of --resume, or of --output_dir
    # --- run
    output_dir: PathFlag = ""  # where the run is written; default runs/translation/<recipe>
    resume: PathFlag = ""  # "latest", a run folder or a checkpoint to go on from, with its run's own settings
    resume_changes: bool = False  # accept flags that make a resume another run; what they do to it is said
    checkpointing_steps: Count = 0  # updates between checkpoints; 0: one after each validation
    checkpoints_total_limit: Count = 2  # newest checkpoints that are kept, besides the best; 0: all
    log_every: Count = 20  # updates between log lines
    find_lr: bool = False  # run a learning-rate range test, suggest a rate and end
    compile: bool = False  # torch.compile the model
    profile: bool = False  # profile a few updates: table and trace in <output_dir>/profile
    tracker: Literal["wandb", "none"] = "wandb"  # where metrics go besides metrics.jsonl


# On a resume the first may be given anew; the second would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps lr pct_start beta2 weight_decay max_grad_norm ema_decay patience validate_every
    beam_size length_penalty tune_length_penalty length_normalization test_sentences final_test eval_max_len
    eval_batch_size eval_max_tokens data_dir
    extra_test_files checkpointing_steps checkpoints_total_limit log_every compile
    """
)
MAKES_THE_RUN = flag_names(
    """
    recipe dataset dataset_config dataset_revision languages train_files valid_files test_files valid_fraction
    test_fraction max_length_ratio tokenizer vocab_size min_frequency lowercase mask_numbers bpe_dropout max_len
    model dropout tied_embeddings d_model n_heads n_encoder_layers n_decoder_layers d_ff attention_dropout
    activation_dropout pre_norm positions embedding_dim hidden_size n_layers attentional_layer early_attention
    input_feeding teacher_forcing_ratio optimizer label_smoothing seed bleu_tokenizer valid_sentences
    """
)

DE_EN = {"dataset": "IWSLT/iwslt2017", "dataset_config": "iwslt2017-de-en", "languages": ("de", "en"),
         "dataset_revision": "refs/convert/parquet"}  # fmt: skip
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
    "de-en": (
        "IWSLT German to English, or --train_files: 3+3 layers, d_model 256, 4 heads",
        Config(**DE_EN, recipe="de-en", d_model=256, n_heads=4, n_encoder_layers=3, n_decoder_layers=3, d_ff=1024,
               vocab_size=4000, max_tokens=2048, epochs=6, lr=2e-3),
    ),
    "de-en-lstm": (
        "the same by a small LSTM over whole words: 2+2 layers, embeddings 64, hidden 128",
        Config(**DE_EN, recipe="de-en-lstm", model="lstm", tied_embeddings="none", tokenizer="word",
               vocab_size=50_000, min_frequency=5, max_len=48, label_smoothing=0.0, epochs=10, lr=5e-3),
    ),
    "de-en-lstm-strong": (
        "the same by a wider LSTM: BPE, early attention, tied embeddings, label smoothing",
        Config(**DE_EN, recipe="de-en-lstm-strong", model="lstm", embedding_dim=320, hidden_size=320, dropout=0.2,
               tied_embeddings="output", attentional_layer=True, early_attention=True, vocab_size=3000,
               max_tokens=4096, epochs=7, optimizer="muon", lr=6e-3),
    ),
}  # fmt: skip

TRANSFORMER_OPTIONS = ("d_model", "n_heads", "n_encoder_layers", "n_decoder_layers", "d_ff", "attention_dropout",
                       "activation_dropout", "pre_norm", "positions")  # fmt: skip
LSTM_OPTIONS = ("embedding_dim", "hidden_size", "n_layers", "attentional_layer", "early_attention",
                "input_feeding", "teacher_forcing_ratio")  # fmt: skip
# What a checkpoint was evaluated with whose config does not have the field yet.
OLD_RULES = {"length_normalization": "gnmt"}
STACKED = {"weight_ih": 4, "weight_hh": 4, "key_value": 2}  # matrices in one parameter: gates; keys and values


def build_model(config: Config, source_vocab_size: int, target_vocab_size: int) -> Transformer | Seq2SeqLSTM:
    lstm = config.model == "lstm"
    make, options = (Seq2SeqLSTM, LSTM_OPTIONS) if lstm else (Transformer, TRANSFORMER_OPTIONS)
    try:
        return make(
            source_vocab_size, target_vocab_size, dropout=config.dropout, tied_embeddings=config.tied_embeddings,
            pad_id=PAD_ID, **{name: getattr(config, name) for name in options},
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from error


def build_optimizer(model, config: Config, mixed_precision: str) -> torch.optim.Optimizer:
    fused = mixed_precision != "fp16"  # fused hides from Accelerate that fp16 skipped a step
    settings = {"lr": config.lr, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay, "fused": fused}
    if config.optimizer == "muon":
        products = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
        return MuonAdamW(muon_groups(model, model.output_weight, STACKED), **settings, dtype=products)
    matrices = {"params": [p for p in model.parameters() if p.ndim > 1]}
    vectors = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], **settings)


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
                max_norm = config.max_grad_norm or math.inf  # inf: only measure
                gradient_norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            optimizer.zero_grad()
        sums += torch.stack([smoothed.detach(), nll])
    return sums, gradient_norm


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model, pairs: TokenizedPairs, text: ParallelText, tokenizer: TextTokenizer,
    config: Config, beam_size: int, n_translated: int = 0,
) -> tuple[dict, Translations]:  # fmt: skip
    """Negative log-likelihood per token (nats) of all pairs; BLEU and chrF of n_translated of them, or of all (0).

    Every process takes a share and all get the same answer: (metrics, the translations in the text's order).
    `model` is a plain one, not the prepared. Decoding is in fp32 whatever the training precision.
    """
    model.eval()
    rank, n_processes, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    updates = BatchPlanner(
        pairs.source.lengths, pairs.target.lengths, config.max_tokens, n_processes, "sorted", allow_longer=True
    ).plan_epoch(0)
    nll = torch.zeros((), device=device)
    for update in updates:
        sentences, counted = update.micro_batches(n_processes)[rank]
        with accelerator.autocast():
            nll += model(*collate(pairs.source, pairs.target, sentences, update.shape, counted, device))[1]
    nll = float(sum_over_processes(accelerator, nll)) / sum(u.target_tokens for u in updates)

    picked = evenly_spaced(len(pairs), n_translated)

    def translate(share: range) -> list[str]:
        sentences = [picked[i] for i in share]
        outputs = decode_in_batches(
            model, [[*pairs.source[i].tolist(), EOS_ID] for i in sentences], SPECIAL, beam_size=beam_size,
            length_penalty=config.length_penalty, length_normalization=config.length_normalization,
            batch_size=config.eval_batch_size, max_tokens=config.eval_max_tokens, device=device,
        )  # fmt: skip
        return tokenizer.decode(outputs, [text.sources[i] for i in sentences])

    translations = Translations(
        [text.sources[i] for i in picked],
        translate_in_shares(accelerator, len(picked), translate),
        [text.targets[i] for i in picked],
    )
    scores = score_translations(
        translations.hypotheses, translations.references, config.bleu_tokenizer, config.lowercase
    )
    return {"nll": nll, **scores}, translations


def choose_length_penalty(run: Run, model, corpus: TranslationCorpus, config: Config) -> tuple[float, dict]:
    """The power of --tune_length_penalty that gives beam search the best BLEU on the validation sentences.

    Returns it with the metrics of those translations.
    """
    pairs, text = corpus.valid, corpus.splits.valid
    picked = evenly_spaced(len(pairs), config.valid_sentences)
    pairs, text = pairs.select(picked), text.select(picked)
    best, best_metrics = config.length_penalty, None
    for power in config.tune_length_penalty:
        tried = replace(config, length_penalty=power)
        metrics, _ = evaluate(run.accelerator, model, pairs, text, corpus.target_tokenizer, tried, config.beam_size)
        run.print(
            f"length penalty {power:g}: validation BLEU {metrics['bleu']:.2f} by beam search, "
            f"brevity penalty {metrics['brevity_penalty']:.3f}"
        )
        if best_metrics is None or is_better(metrics, best_metrics):
            best, best_metrics = power, metrics
    return best, best_metrics


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


def main(config: Config) -> None:
    config = replace(config, output_dir=config.output_dir or f"runs/translation/{config.recipe}")
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "translation", OLD_RULES)
    for name in TRANSFORMER_OPTIONS if config.model == "lstm" else LSTM_OPTIONS:
        differs = getattr(config, name) != getattr(RECIPES[config.recipe][1], name)
        if differs and name in flags_given(config, RECIPES):  # of a resumed run the recipe may say otherwise now
            raise UsageError(f"--{name} is none of the options of --model {config.model}")
    if config.eval_only and not config.final_test:
        raise UsageError("--eval_only evaluates the test split: leave out --no_final_test")
    accelerator = open_accelerator(config.gradient_accumulation_steps)
    own_folder(accelerator, config.output_dir)
    seed_global_generators(Stream.INITIAL_WEIGHTS, config.seed)

    # --- data and model, before anything is written
    splits = load_splits(
        config.dataset, config.dataset_config, config.languages, data_dir=config.data_dir or None,
        dataset_revision=config.dataset_revision or None, train_files=config.train_files,
        valid_files=config.valid_files, test_files=config.test_files, extra_test_files=config.extra_test_files,
        valid_fraction=config.valid_fraction, test_fraction=config.test_fraction,
        max_length_ratio=config.max_length_ratio, lowercase=config.lowercase,
    )  # fmt: skip
    bleu_tokenizer, note = choose_bleu_tokenizer(config.bleu_tokenizer, config.languages[1], splits.train.targets)
    config = replace(config, bleu_tokenizer=bleu_tokenizer)
    notes = "".join(f"{line}\n" for line in (*splits.notes, note) if line)
    with accelerator.local_main_process_first():  # the others find the tokens in the cache
        corpus = TranslationCorpus(
            splits, kind=config.tokenizer, vocab_size=config.vocab_size, min_frequency=config.min_frequency,
            lowercase=config.lowercase, mask_numbers=config.mask_numbers, max_len=config.max_len,
            joint=config.tied_embeddings == "three-way", bpe_dropout=config.bpe_dropout, seed=config.seed,
            eval_max_len=config.eval_max_len,
        )  # fmt: skip
    vocab_sizes = corpus.source_tokenizer.vocab_size, corpus.target_tokenizer.vocab_size
    if config.beam_size > vocab_sizes[1]:
        raise UsageError(f"--beam_size {config.beam_size} is more than the {vocab_sizes[1]} tokens of the target")
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
    n_shards = accelerator.num_processes if sharded else 1
    model = build_within_memory(partial(build_model, config, *vocab_sizes), accelerator.device, n_shards)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    if len(corpus.train) < n_parts:
        raise DataError(
            f"{len(corpus.train)} training pairs are too few for {n_parts} micro-batches an update: lower "
            "--gradient_accumulation_steps or launch fewer processes"
        )

    def plan(pairs: TokenizedPairs) -> BatchPlanner:
        return BatchPlanner(
            pairs.source.lengths, pairs.target.lengths, config.max_tokens, n_parts, config.batching, config.seed
        )

    planner = plan(corpus.training_pairs(0))
    first_epoch = planner.plan_epoch(0)

    checkpoint = None
    if config.resume or config.eval_only:
        resume = config.resume or config.output_dir
        checkpoint = find_checkpoint(resume, Path(config.output_dir), prefer_best=config.eval_only)
    if checkpoint:
        check_files(checkpoint, {f"{side}_tokenizer.json": t.to_json() for side, t in corpus.tokenizers.items()})
    ema = EMA(model.to(accelerator.device), config.ema_decay) if config.ema_decay > 0 else None
    optimizer = build_optimizer(model, config, accelerator.mixed_precision)
    if sharded and (ema is None or config.optimizer == "muon"):
        raise UsageError(
            "a sharded model is decoded by its average, --ema_decay, and trained with --optimizer adamw"
        )
    if config.compile:
        compile_model(model, accelerator.device, dynamic=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    evaluated = ema.module if ema else accelerator.unwrap_model(model)
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0, "best": None, "validations_since_best": 0}
    window = MetricWindow(accelerator, ("train/loss", "train/nll"), rate="train/tokens_per_second")
    # From here on dropout differs between processes.
    seed_global_generators(Stream.DROPOUT, config.seed, accelerator.process_index)
    if checkpoint:
        state = load_checkpoint(accelerator, model, checkpoint, ema, config.optimizer, config.resume_changes)
        window.load(state["window"])
    planned = EpochPlan(
        config.max_tokens * n_parts, len(planner.source_lengths), len(first_epoch), config.seed, config.batching
    )
    place_in_epoch(accelerator, config, state, planned, checkpoint, "tokens")
    total_steps = config.max_train_steps or config.epochs * len(first_epoch) + state["extra_steps"]
    if config.find_lr:
        return find_lr(accelerator, model, optimizer, planner, corpus, config)

    best_is = {"valid/bleu": "max", "valid/nll": "min"}
    run = Run(accelerator, "translation", config, checkpoint, state, best_is)
    n_shapes = len({(update.shape, len(update.sentences)) for update in first_epoch})
    run.print(
        f"{corpus}\n{notes}{sum(p.numel() for p in evaluated.parameters()):,} parameters; {total_steps:,} updates, "
        f"{len(first_epoch)} an epoch in {n_shapes} shapes; {planner.padding_share(first_epoch):.1%} padding"
    )

    def save() -> Path:
        files = {f"{name}_tokenizer.json": tokenizer.to_json() for name, tokenizer in corpus.tokenizers.items()}
        saved = {**state, **run.state(), "window": window.state(), "config": asdict(config)}
        return save_checkpoint(accelerator, model, run.output_dir, saved, ema=ema, files=files,
                    total_limit=config.checkpoints_total_limit)  # fmt: skip

    def validate(epoch: float) -> None:
        """Log BLEU and loss of the validation split; note the best so far; show some translations."""
        metrics, translations = evaluate(
            accelerator, evaluated, corpus.valid, splits.valid, corpus.target_tokenizer, config,
            beam_size=1, n_translated=config.valid_sentences,
        )  # fmt: skip
        state["validations_since_best"] += 1
        best = {name.removeprefix("valid/"): value for name, value in (state["best"] or {}).items()}
        if not best or is_better(metrics, best):
            state["best"] = {"step": state["step"], **numbers(metrics, "valid")}
            state["validations_since_best"] = 0
        run.log(numbers(metrics, "valid"), state["step"], epoch)
        run.print(
            f"step {state['step']:,}: validation BLEU {metrics['bleu']:.2f}, chrF {metrics['chrf']:.2f}, "
            f"brevity penalty {metrics['brevity_penalty']:.3f}, loss {metrics['nll']:.3f}"
        )
        run.log_samples(translations.sources, translations.hypotheses, translations.references, state["step"])

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
            state["updates_of_epoch"] = len(updates)
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
                epoch = epochs_done(state)
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
                begin_next_epoch(state)

    # --- the best checkpoint on the test split, by beam search
    run.release_signals()
    load_weights(evaluated, (not config.eval_only and best_checkpoint(run.output_dir)) or last_checkpoint)
    summary = {f"best/{name}": value for name, value in (state["best"] or {}).items()}
    if config.tune_length_penalty:
        power, metrics = choose_length_penalty(run, evaluated, corpus, config)
        config = replace(config, length_penalty=power)
        summary |= numbers(metrics, "valid_beam")
    summary["length_penalty"] = config.length_penalty
    tests = [("test", corpus.test, splits.test), ("test_extra", corpus.test_extra, splits.test_extra)]
    if not config.final_test:
        run.print("the test split is not evaluated (--no_final_test)")
        tests = []
    for name, pairs, text in tests[: 2 if splits.test_extra else 1]:
        metrics, translations = evaluate(accelerator, evaluated, pairs, text, corpus.target_tokenizer, config,
                                         config.beam_size, config.test_sentences)  # fmt: skip
        metrics |= scores_without_near_duplicates(
            translations, splits.train.sources, config.bleu_tokenizer, config.lowercase
        )
        n_cut = int(corpus.was_cut[name][evenly_spaced(len(pairs), config.test_sentences)].sum())
        metrics |= {"n_sentences_in_split": len(pairs), "n_sources_cut": n_cut}
        at = state["step"], epochs_done(state)
        summary |= report_translations(run, name, metrics, translations, *at)
    if accelerator.is_main_process:
        figures = plot_translation_run(
            run.output_dir, {"source": planner.source_lengths, "target": planner.target_lengths},
            planner.real_and_padding(first_epoch),
            attention_examples(evaluated, corpus, SPECIAL, accelerator.device),
        )  # fmt: skip
        run.log_figures(figures, state["step"])
    run.finish(summary, window.train_seconds, evaluated)
    run.print(f"translations in {run.output_dir / 'translations'}, figures in {run.figures_dir}")


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
