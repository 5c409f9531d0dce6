"""Train an encoder-decoder Transformer, or an LSTM with attention, to translate, from scratch, on parallel text.

    accelerate launch -q --config_file accelerate_configs/cpu.yaml train_translation.py demo
    accelerate launch -q --config_file accelerate_configs/t4.yaml train_translation.py opus-en-it
    accelerate launch -q --config_file accelerate_configs/cpu_bf16.yaml train_translation.py opus-en-it \
        --train_files corpus.en.gz corpus.it.gz
    accelerate launch -q --config_file accelerate_configs/cpu_bf16.yaml train_translation.py de-en-lstm

Two CPU cores (results/): demo BLEU 98.0 in 92 seconds; Europarl en-it BLEU 25.2 after 18 minutes' training. One
core, Tatoeba de-en: de-en-lstm BLEU 45.1 after 19 minutes, de-en-lstm-strong 51.7 after 36; de-en 51.3 after 47.
Every run ends with sacreBLEU and chrF of beam search on detokenised, cased text of the whole test split, and
leaves its translations beside the references, so that the `sacrebleu` command gives the same score.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from data.errors import DataError
from data.seeding import seed_micro_batch
from data.text.batching import BatchPlanner, Update
from data.text.corpus import CorpusSplits, TranslationCorpus, evenly_spaced, load_text_splits
from data.text.parallel_text import ParallelText
from data.text.small_corpus import settings_for
from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID, TextTokenizer
from data.text.tokenized_text import TokenizedPairs
from figures.lr_range_test import report_lr_range_test
from figures.translation import attention_examples, plot_translation_run
from models.decoding import LengthNormalization, SpecialTokens, decode_in_batches
from models.linear_consistency import linear_consistency
from models.linear_cross_entropy import linear_cross_entropy
from models.lstm import Seq2SeqLSTM
from models.transformer import Transformer
from training.bleu_tokenizer import BleuTokenizer, choose_bleu_tokenizer
from training.checkpoints import find_checkpoint, load_weights, mean_weights
from training.cli import PathFlag, flags_given, refuse_options_of_other_models, run_script
from training.cpu_memory import keep_kernels
from training.errors import UsageError
from training.gradients import clip_gradients
from training.loop import Loop
from training.lr_finder import find_lr
from training.metrics import prefixed
from training.model_size import build_within_memory
from training.muon import MuonAdamW, muon_groups
from training.precision import fused, product_dtype
from training.processes import local_main_process_first
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
    RateDivisor,
    Seed,
    Share,
    ShareBelowOne,
    TokenBudget,
    VocabularySize,
    Weight,
    WeightDecay,
    Width,
)
from training.resuming import EpochPlan, checkpoint_to_resume, flag_names, place_in_epoch, settings_of_run
from training.run import Run, RunConfig, begin_run, close_accelerator, sum_over_processes
from training.schedules import one_cycle, set_lr
from training.setup import is_sharded, prepare_training, weights_to_evaluate
from training.sums import add_to
from training.translation_scores import (
    Translations,
    is_better,
    report_translations,
    score_translations,
    scores_without_near_duplicates,
    translate_in_shares,
)

SPECIAL = SpecialTokens(PAD_ID, begin=BOS_ID, end=EOS_ID)


@dataclass(frozen=True)
class Config(RunConfig):
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
    tokenizer_sample: Count = 250_000  # most training pairs that the vocabulary is made of, evenly spaced; 0: all
    lowercase: bool = False  # all text is put into lower case, references too
    mask_numbers: bool = False  # each number is one token, <num>; the source's are copied back in their order
    bpe_dropout: ShareBelowOne = 0.0  # chance to skip a merge in training, drawn anew each epoch
    max_len: PositiveInt = 128  # training pairs with more tokens on a side are dropped; test pairs never are
    # --- batches
    batching: Literal["bucketed", "sorted", "padded"] = "bucketed"  # how pairs are put together
    max_tokens: TokenBudget = 4096  # rows x longer side of a micro-batch in one process, padding counted
    gradient_accumulation_steps: Parts = 1  # micro-batches of a process in an update
    # --- model
    fit_to_corpus: bool = False  # what data/text/small_corpus.py says of the corpus, for what is not given
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
    # --- objective
    label_smoothing: ShareBelowOne = 0.1  # share of the target spread evenly over the vocabulary
    masked_smoothing: bool = False  # nothing of it for words of a joint vocabulary that only the source side has
    consistency: Literal["none", "r-drop", "simcut"] = "none"  # of two showings: other dropout, or cut tokens
    consistency_weight: Weight = 3.0  # r-drop, simcut: of the divergence of the two predictions (the papers' alpha)
    cutoff: ShareBelowOne = 0.05  # simcut: share of the tokens whose embeddings are zero in the second showing
    # --- optimization
    epochs: Epochs = 18  # passes over the training pairs; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for all matrices but embeddings and output
    lr: LearningRate = 1e-3  # peak of the one-cycle schedule
    pct_start: Share = 0.2  # share of the updates that the rate rises for
    div_factor: RateDivisor = 25.0  # the rate begins at its peak divided by this
    final_div_factor: RateDivisor = 1e4  # it ends at where it began divided by this; both 1: a constant rate
    three_phase: bool = False  # from the peak it first falls, as long as it rose, to where it began
    anneal: Literal["cos", "linear"] = "cos"  # form of the rise and the fall
    beta2: ShareBelowOne = 0.98  # AdamW's second decay
    weight_decay: WeightDecay = 0.01  # of AdamW and Muon, on matrices only
    max_grad_norm: GradientNorm = 1.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.998  # moving average of the weights, which is what is evaluated; 0: none
    average_checkpoints: Count = 0  # the mean of the last so many validations' weights is tried too; 0: none
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
    eval_max_tokens: TokenBudget = 32768  # most tokens decoded at a time: beams x (source + longest translation)


# On a resume these may be given anew; another of the others would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps lr pct_start div_factor final_div_factor three_phase anneal beta2 weight_decay
    max_grad_norm ema_decay average_checkpoints patience validate_every beam_size length_penalty tune_length_penalty
    length_normalization test_sentences eval_max_len eval_batch_size eval_max_tokens data_dir
    checkpointing_steps checkpoints_total_limit log_every compile deterministic
    """
)

DE_EN: dict[str, Any] = {
    "dataset": "IWSLT/iwslt2017",
    "dataset_config": "iwslt2017-de-en",
    "languages": ("de", "en"),
    "dataset_revision": "refs/convert/parquet",
}
RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "English to Italian phrases generated by code; no download, two minutes on two CPU cores",
        Config(
            recipe="demo",
            dataset="phrasebook",
            vocab_size=1000,
            d_model=128,
            n_heads=4,
            d_ff=256,
            n_encoder_layers=3,
            n_decoder_layers=3,
            dropout=0.0,
            epochs=4,
            lr=4e-3,
            max_tokens=1024,
            ema_decay=0.99,
            valid_sentences=200,
        ),
    ),
    "opus-en-it": (
        "opus_books English to Italian: 6+6 layers, d_model 512, 8 heads",
        Config(
            recipe="opus-en-it",
            max_tokens=8192,
        ),
    ),
    "opus-en-fr": (
        "opus_books English to French: three-way tied embeddings, d_ff 128",
        Config(
            recipe="opus-en-fr",
            dataset_config="en-fr",
            languages=("en", "fr"),
            d_ff=128,
            max_tokens=8192,
        ),
    ),
    "de-en": (
        "IWSLT German to English, or --train_files: 3+3 layers, d_model 256, 4 heads",
        Config(
            **DE_EN,
            recipe="de-en",
            d_model=256,
            n_heads=4,
            n_encoder_layers=3,
            n_decoder_layers=3,
            d_ff=1024,
            tied_embeddings="output",
            vocab_size=10_000,
            max_tokens=4096,
            epochs=6,
            optimizer="muon",
            lr=6e-3,
        ),
    ),
    "opus-en-it-course": (
        "opus-en-it as a course had it first: whole words, all padded to the longest, one rate",
        Config(
            recipe="opus-en-it-course",
            tokenizer="word",
            vocab_size=30_000,
            min_frequency=2,
            max_len=350,
            batching="padded",
            max_tokens=2800,  # eight sentences of 350
            tied_embeddings="none",
            lr=1e-4,
            div_factor=1,
            final_div_factor=1,
            beta2=0.999,
            weight_decay=0.0,
            max_grad_norm=0.0,
            ema_decay=0.0,
        ),
    ),
    "opus-en-fr-course": (
        "opus-en-fr as a course had it: whole words, one embedding, sorted batches, one-cycle",
        Config(
            recipe="opus-en-fr-course",
            dataset_config="en-fr",
            languages=("en", "fr"),
            tokenizer="word",
            vocab_size=30_000,
            min_frequency=2,
            max_len=150,
            batching="sorted",
            d_ff=128,
            pct_start=0.3,
            div_factor=100,
            final_div_factor=100,
            beta2=0.999,
            weight_decay=0.0,
            max_grad_norm=0.0,
            ema_decay=0.0,
        ),
    ),
    "small-corpus": (
        "20,000 to 200,000 pairs of any languages: vocabulary, updates, epochs and size by the corpus",
        Config(
            **DE_EN,
            recipe="small-corpus",
            fit_to_corpus=True,
            d_model=256,
            n_heads=4,
            n_encoder_layers=3,
            n_decoder_layers=3,
            d_ff=1024,
            optimizer="muon",
            lr=6e-3,
        ),
    ),
    "de-en-lstm": (
        "the same by a small LSTM over whole words: 2+2 layers, embeddings 64, hidden 128",
        Config(
            **DE_EN,
            recipe="de-en-lstm",
            model="lstm",
            tied_embeddings="none",
            tokenizer="word",
            vocab_size=50_000,
            min_frequency=5,
            max_len=48,
            label_smoothing=0.0,
            epochs=10,
            lr=5e-3,
        ),
    ),
    "de-en-lstm-strong": (
        "the same by a wider LSTM: BPE, early attention, tied embeddings, label smoothing",
        Config(
            **DE_EN,
            recipe="de-en-lstm-strong",
            model="lstm",
            embedding_dim=320,
            hidden_size=320,
            dropout=0.2,
            tied_embeddings="output",
            attentional_layer=True,
            early_attention=True,
            vocab_size=3000,
            max_tokens=4096,
            epochs=7,
            optimizer="muon",
            lr=6e-3,
        ),
    ),
}

TRANSFORMER_OPTIONS = (
    "d_model",
    "n_heads",
    "n_encoder_layers",
    "n_decoder_layers",
    "d_ff",
    "attention_dropout",
    "activation_dropout",
    "pre_norm",
    "positions",
)
LSTM_OPTIONS = (
    "embedding_dim",
    "hidden_size",
    "n_layers",
    "attentional_layer",
    "early_attention",
    "input_feeding",
    "teacher_forcing_ratio",
)
CONSISTENCY_OPTIONS = {"r-drop": ("consistency_weight",), "simcut": ("consistency_weight", "cutoff")}
# What held for a checkpoint whose config does not have the field yet.
OLD_RULES = {"length_normalization": "gnmt", "tokenizer_sample": 0}
STACKED = {"weight_ih": 4, "weight_hh": 4, "key_value": 2}  # matrices in one parameter: gates; keys and values


def check_options(config: Config) -> None:
    """Raise UsageError where flags do not go with each other."""
    if config.bpe_dropout and config.max_tokens < config.max_len:
        raise UsageError(
            f"--bpe_dropout makes sentences longer, some up to --max_len {config.max_len}, in any epoch: lower "
            f"that to --max_tokens {config.max_tokens}"
        )
    if config.tune_length_penalty and config.beam_size == 1:
        raise UsageError("--tune_length_penalty is of beam search: give --beam_size 2 or more")
    if config.masked_smoothing and config.tied_embeddings != "three-way":
        raise UsageError("--masked_smoothing is of a joint vocabulary: add --tied_embeddings three-way")
    if config.masked_smoothing and config.label_smoothing == 0:
        raise UsageError("--masked_smoothing says where --label_smoothing goes: give it more than 0")
    if config.average_checkpoints and config.checkpointing_steps:
        raise UsageError(
            "--average_checkpoints takes the checkpoint of each validation: leave out --checkpointing_steps"
        )
    if config.consistency == "none":
        return
    if config.teacher_forcing_ratio < 1:
        raise UsageError("--consistency compares predictions of the same tokens: give --teacher_forcing_ratio 1")
    if config.consistency == "simcut" and config.input_feeding:
        raise UsageError("--consistency simcut cuts a target that is read in one call: leave out --input_feeding")
    if config.consistency == "r-drop" and not config.dropout + config.attention_dropout + config.activation_dropout:
        raise UsageError("--consistency r-drop compares predictions under dropout: give --dropout more than 0")


def load_splits(config: Config) -> CorpusSplits:
    """The text of the training, validation and test sets."""
    return load_text_splits(
        config.dataset,
        config.dataset_config,
        config.languages,
        dataset_revision=config.dataset_revision or None,
        data_dir=config.data_dir or None,
        train_files=config.train_files,
        valid_files=config.valid_files,
        test_files=config.test_files,
        extra_test_files=config.extra_test_files,
        valid_fraction=config.valid_fraction,
        test_fraction=config.test_fraction,
        max_length_ratio=config.max_length_ratio,
        lowercase=config.lowercase,
    )


def fit_to_corpus(config: Config, splits: CorpusSplits) -> tuple[Config, CorpusSplits]:
    """The config of a new run with what the corpus asks for, but for the flags that were given; a note of it."""
    settings = settings_for(splits.train)
    given = flags_given(config, RECIPES)
    fitted = {name: value for name, value in asdict(settings).items() if name not in given}
    note = f"settings for {len(splits.train):,} pairs: {settings.flags()}"
    kept = [f"--{name} {getattr(config, name)}" for name in asdict(settings) if name in given]
    note += f"; given instead: {' '.join(kept)}" if kept else ""
    splits = replace(splits, notes=(*splits.notes, note))
    return replace(config, **fitted), splits


def begins_anew(config: Config) -> bool:
    """Whether there is no checkpoint to go on from: of `--resume latest` there may be none yet."""
    if not (config.resume or config.eval_only):
        return True
    run = config.resume or config.output_dir
    return find_checkpoint(run, Path(config.output_dir), prefer_best=config.eval_only) is None


def tokenize(splits: CorpusSplits, config: Config) -> TranslationCorpus:
    """The tokens of the splits, by tokenizers that are trained on the training split."""
    return TranslationCorpus(
        splits,
        kind=config.tokenizer,
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        lowercase=config.lowercase,
        mask_numbers=config.mask_numbers,
        joint=config.tied_embeddings == "three-way",
        tokenizer_sample=config.tokenizer_sample,
        bpe_dropout=config.bpe_dropout,
        max_len=config.max_len,
        eval_max_len=config.eval_max_len,
        seed=config.seed,
    )


def planner_of(accelerator: Accelerator, pairs: TokenizedPairs, config: Config) -> BatchPlanner:
    """What plans the updates of all processes, and gathers the batches of this one on its device."""
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    return BatchPlanner(
        pairs,
        config.max_tokens,
        n_parts,
        config.batching,
        config.seed,
        device=accelerator.device,
        own_parts=range(accelerator.process_index, n_parts, accelerator.num_processes),
    )


def check_sizes(corpus: TranslationCorpus, n_parts: int, beam_size: int) -> None:
    """Raise DataError or UsageError where the corpus is too small for the flags."""
    n_tokens = corpus.target_tokenizer.vocab_size
    if beam_size > n_tokens:
        raise UsageError(f"--beam_size {beam_size} is more than the {n_tokens} tokens of the target")
    if len(corpus.train) < n_parts:
        raise DataError(
            f"{len(corpus.train)} training pairs are too few for {n_parts} micro-batches an update: lower "
            "--gradient_accumulation_steps or launch fewer processes"
        )


def build_model(config: Config, source_vocab_size: int, target_vocab_size: int) -> Transformer | Seq2SeqLSTM:
    """The model: token ids -> the objective's sums."""
    make: type[Transformer] | type[Seq2SeqLSTM] = Transformer
    options: tuple[str, ...] = TRANSFORMER_OPTIONS
    if config.model == "lstm":
        make = Seq2SeqLSTM
        options = LSTM_OPTIONS
    try:
        return make(
            source_vocab_size,
            target_vocab_size,
            dropout=config.dropout,
            tied_embeddings=config.tied_embeddings,
            pad_id=PAD_ID,
            **{name: getattr(config, name) for name in options},
        )
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from error


def build_optimizer(model: Transformer | Seq2SeqLSTM, config: Config, mixed_precision: str) -> Optimizer:
    """AdamW for every parameter, or Muon for the matrices inside; weight decay on matrices alone."""
    options: dict[str, Any] = {
        "lr": config.lr,
        "betas": (0.9, config.beta2),
        "weight_decay": config.weight_decay,
        "fused": fused(mixed_precision),
    }
    if config.optimizer == "muon":
        groups = muon_groups(model, model.output_weight, STACKED)
        return MuonAdamW(groups, **options, dtype=product_dtype(mixed_precision))
    matrices: dict[str, Any] = {"params": [p for p in model.parameters() if p.ndim > 1]}
    vectors: dict[str, Any] = {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([matrices, vectors], **options)


def learning_rate(config: Config, step: int, total_steps: int) -> float:
    """The rate of update `step`, counted from 0."""
    return one_cycle(
        step,
        total_steps=total_steps,
        max_lr=config.lr,
        pct_start=config.pct_start,
        div_factor=config.div_factor,
        final_div_factor=config.final_div_factor,
        three_phase=config.three_phase,
        anneal=config.anneal,
    )


def smoothing_spread(corpus: TranslationCorpus, config: Config, device: torch.device) -> Tensor | None:
    """How --label_smoothing spreads its share over the vocabulary, (V,) of sum 1; None: evenly."""
    if not config.masked_smoothing:
        return None
    smoothed = torch.from_numpy(~corpus.only_in_source()).float()
    return (smoothed / smoothed.sum()).to(device)


def token_sums(
    states: Tensor, output_weight: Tensor, labels: Tensor, label_smoothing: float, spread: Tensor | None = None
) -> dict[str, Tensor]:
    """What is trained on ("loss") and what is logged beside it, as sums over the target tokens (nats).

    The model's `forward` calls it with its states (B, T, D) and its output projection (V, D), and passes on the
    labels (B, T), PAD_ID where nothing is to be predicted. The logits are states @ output_weight.T (B, T, V); they
    are never held as a whole.
    """
    loss, nll = linear_cross_entropy(states, output_weight, labels, label_smoothing, spread, ignore_index=PAD_ID)
    return {"loss": loss, "nll": nll}


def consistency_sums(
    states: Tensor, output_weight: Tensor, labels: Tensor, config: Config, spread: Tensor | None
) -> dict[str, Tensor]:
    """`token_sums` of sentences shown twice, states (2B, T, D), with how far the two predictions lie apart."""
    loss, nll, divergence = linear_consistency(
        states,
        output_weight,
        labels,
        config.consistency,
        config.consistency_weight,
        config.label_smoothing,
        spread,
        ignore_index=PAD_ID,
    )
    return {"loss": loss, "nll": nll, "divergence": divergence}


def cut_tokens(tokens: Tensor, cutoff: float) -> Tensor:
    """Which of the tokens (B, T), shown whole and then once more, are cut: (2B, T) bool, none of the first half."""
    cut = torch.rand(tokens.shape, device=tokens.device) < cutoff
    return torch.cat([torch.zeros_like(cut), cut])


def train_update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    config: Config,
    spread: Tensor | None,
    batch: Update,
    step: int,
    lr: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update `step`, on the sentences of `batch`; this process takes its share of the micro-batches.

    `spread` is that of label smoothing.
    Returns this process's sums of the objective, by name, and the gradient norm.
    """
    model.train()
    set_lr(optimizer, lr)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    sums: dict[str, Tensor] = {}
    for part in range(accelerator.process_index, n_parts, accelerator.num_processes):
        seed_micro_batch(config.seed, step, part)
        source, target, labels = batch.micro_batch(part, n_parts, accelerator.device)
        with accelerator.accumulate(model):
            if config.consistency == "none":
                terms = model(source, target, token_sums, labels, config.label_smoothing, spread)
            else:  # twice in one call, so that DDP sees one forward for each backward
                cut = None
                if config.consistency == "simcut":
                    cut = cut_tokens(source, config.cutoff), cut_tokens(target, config.cutoff)
                twice = source.repeat(2, 1), target.repeat(2, 1)
                terms = model(*twice, consistency_sums, labels, config, spread, cut=cut)
            # The mean over all target tokens of the update: DDP averages over processes and backward()
            # divides by the accumulation steps, so the sum is scaled up by both.
            accelerator.backward(terms["loss"] * (n_parts / batch.target_tokens))
            if accelerator.sync_gradients:
                gradient_norm = clip_gradients(accelerator, model, config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        add_to(sums, terms)
    return sums, gradient_norm


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    pairs: TokenizedPairs,
    text: ParallelText,
    tokenizer: TextTokenizer,
    config: Config,
    beam_size: int,
    n_translated: int = 0,
) -> tuple[dict, Translations]:
    """Negative log-likelihood per token (nats) of all pairs; BLEU and chrF of n_translated of them, or of all (0).

    Every process takes a share and all get the same answer: (metrics, the translations in the text's order).
    `model` is a bare one, not the prepared. Decoding is in fp32 whatever the training precision.
    """
    model.eval()
    picked = evenly_spaced(len(pairs), n_translated)

    def translate(share: range) -> list[str]:
        sentences = [picked[i] for i in share]
        outputs = decode_in_batches(
            model,
            [[*pairs.source[i].tolist(), EOS_ID] for i in sentences],
            SPECIAL,
            beam_size=beam_size,
            length_penalty=config.length_penalty,
            length_normalization=config.length_normalization,
            batch_size=config.eval_batch_size,
            max_tokens=config.eval_max_tokens,
            device=accelerator.device,
        )
        return tokenizer.decode(outputs, [text.sources[i] for i in sentences])

    metrics = objective_per_token(accelerator, model, pairs, config)
    translations = Translations(
        sources=[text.sources[i] for i in picked],
        hypotheses=translate_in_shares(accelerator, len(picked), translate),
        references=[text.targets[i] for i in picked],
    )
    scores = score_translations(
        translations.hypotheses, translations.references, config.bleu_tokenizer, config.lowercase
    )
    return {**metrics, **scores}, translations


def objective_per_token(
    accelerator: Accelerator, model: nn.Module, pairs: TokenizedPairs, config: Config
) -> dict[str, float]:
    """What the objective logs beside the smoothed loss, per target token of all pairs; each process has a share."""
    n_processes = accelerator.num_processes
    own_part = range(accelerator.process_index, accelerator.process_index + 1)
    planner = BatchPlanner(
        pairs,
        config.max_tokens,
        n_processes,
        batching="sorted",
        allow_longer=True,
        device=accelerator.device,
        own_parts=own_part,
    )
    batches = planner.plan_epoch(0)
    sums: dict[str, Tensor] = {}
    for batch in planner.loaded(batches):
        source, target, labels = batch.micro_batch(accelerator.process_index, n_processes, accelerator.device)
        with accelerator.autocast():
            add_to(sums, model(source, target, token_sums, labels, config.label_smoothing))
    del sums["loss"]  # what label smoothing adds to it says nothing of the model
    n_tokens = sum(batch.target_tokens for batch in batches)
    return {name: float(sum_over_processes(accelerator, total)) / n_tokens for name, total in sums.items()}


def choose_length_penalty(
    run: Run, model: nn.Module, corpus: TranslationCorpus, config: Config
) -> tuple[float, dict]:
    """The power of --tune_length_penalty that gives beam search the best BLEU on the validation sentences.

    Returns it with the metrics of those translations.
    """
    picked = evenly_spaced(len(corpus.valid), config.valid_sentences)
    pairs = corpus.valid.select(picked)
    text = corpus.splits.valid.select(picked)
    best = config.length_penalty
    best_metrics: dict = {}
    for power in config.tune_length_penalty:
        tried = replace(config, length_penalty=power)
        metrics, _ = evaluate(run.accelerator, model, pairs, text, corpus.target_tokenizer, tried, config.beam_size)
        run.print(
            f"length penalty {power:g}: validation BLEU {metrics['bleu']:.2f} by beam search, "
            f"brevity penalty {metrics['brevity_penalty']:.3f}"
        )
        if not best_metrics or is_better(metrics, best_metrics):
            best = power
            best_metrics = metrics
    return best, best_metrics


def try_mean(run: Run, loop: Loop, model: nn.Module, corpus: TranslationCorpus, config: Config) -> None:
    """Validate the mean of the last validations' weights. Where it is the best so far, it is what is tested.

    Beside a moving average it looks further back (Vaswani et al. 2017, section 6.1).
    """
    checkpoints = loop.checkpoints_kept
    if config.eval_only or len(checkpoints) < 2:
        return
    mean = mean_weights(checkpoints)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(mean)
    metrics, _ = evaluate(
        run.accelerator,
        model,
        corpus.valid,
        corpus.splits.valid,
        corpus.target_tokenizer,
        config,
        beam_size=1,
        n_translated=config.valid_sentences,
    )
    model.load_state_dict(own)
    best = loop.best["valid/bleu"] if loop.best else 0.0
    is_tested = loop.offer_mean(mean, metrics, is_better)
    run.print(
        f"mean of the weights of {len(checkpoints)} validations: validation BLEU {metrics['bleu']:.2f}, "
        f"{'better' if is_tested else 'no better'} than {best:.2f}"
    )


def report_validation(run: Run, step: int, metrics: dict, translations: Translations) -> None:
    """Print the scores of a validation and show some of its translations."""
    run.print(
        f"step {step:,}: validation BLEU {metrics['bleu']:.2f}, chrF {metrics['chrf']:.2f}, "
        f"brevity penalty {metrics['brevity_penalty']:.3f}, loss {metrics['nll']:.3f}"
    )
    run.log_samples("valid", translations.sources, translations.hypotheses, translations.references, step)


def score_test_sets(run: Run, loop: Loop, model: nn.Module, corpus: TranslationCorpus, config: Config) -> dict:
    """Translate the test split by beam search, and a further test set likewise; their metrics, as logged."""
    splits = corpus.splits
    test_sets = [("test", corpus.test, splits.test)]
    if corpus.test_extra and splits.test_extra:
        test_sets.append(("test_extra", corpus.test_extra, splits.test_extra))
    scores: dict = {}
    for name, pairs, text in test_sets:
        metrics, translations = evaluate(
            run.accelerator,
            model,
            pairs,
            text,
            corpus.target_tokenizer,
            config,
            beam_size=config.beam_size,
            n_translated=config.test_sentences,
        )
        metrics |= scores_without_near_duplicates(
            translations, splits.train.sources, config.bleu_tokenizer, config.lowercase
        )
        was_cut = corpus.was_cut[name][evenly_spaced(len(pairs), config.test_sentences)]
        metrics |= {"n_sentences_in_split": len(pairs), "n_sources_cut": int(was_cut.sum())}
        scores |= report_translations(run, name, metrics, translations, loop.step, loop.epochs_done)
    return scores


def report_test(run: Run, loop: Loop, model: nn.Module, corpus: TranslationCorpus, planner: BatchPlanner) -> None:
    """Score the chosen weights on the test split, draw the run's figures, and end it."""
    accelerator, config = run.accelerator, run.config
    run.release_signals()
    try_mean(run, loop, model, corpus, config)
    load_weights(model, loop.checkpoint_to_test)
    model.eval()
    summary = loop.summary()
    if config.tune_length_penalty:
        power, metrics = choose_length_penalty(run, model, corpus, config)
        config = replace(config, length_penalty=power)
        summary |= prefixed("valid_beam", metrics)
    summary["length_penalty"] = config.length_penalty
    if config.final_test:
        summary |= score_test_sets(run, loop, model, corpus, config)
    else:
        run.print("the test split is not evaluated (--no_final_test)")
    if accelerator.is_main_process:
        shown = corpus.test if config.final_test else corpus.valid
        figures = plot_translation_run(
            run.output_dir,
            {"source": planner.source_lengths, "target": planner.target_lengths},
            planner.real_and_padding(planner.plan_epoch(0)),
            attention_examples(model, shown.source, corpus.tokenizers, SPECIAL, accelerator.device),
        )
        run.log_figures(figures, loop.step)
    run.finish(summary, loop.train_seconds, model)
    run.print(f"translations in {run.output_dir / 'translations'}, figures in {run.figures_dir}")


def main(config: Config) -> None:
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "translation", OLD_RULES)
    refuse_options_of_other_models(config, RECIPES, {"transformer": TRANSFORMER_OPTIONS, "lstm": LSTM_OPTIONS})
    refuse_options_of_other_models(config, RECIPES, CONSISTENCY_OPTIONS, choice="consistency")
    check_options(config)
    keep_kernels()  # on a CPU: the batches of an epoch have many shapes
    accelerator = begin_run(config)
    device = accelerator.device
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps

    # --- data
    with local_main_process_first(accelerator):  # the others find text and tokens in the cache
        splits = load_splits(config)
        if config.fit_to_corpus and begins_anew(config):  # the settings of an old run are what it was fitted to
            config, splits = fit_to_corpus(config, splits)
        corpus = tokenize(splits, config)
    bleu_tokenizer, note = choose_bleu_tokenizer(config.bleu_tokenizer, config.languages[1], splits.train.targets)
    config = replace(config, bleu_tokenizer=bleu_tokenizer)
    check_sizes(corpus, n_parts, config.beam_size)
    planner = planner_of(accelerator, corpus.training_pairs(0), config)
    first_epoch = planner.plan_epoch(0)

    def plan(epoch: int, seen: int = 0) -> Sequence[Update]:  # `seen` is 0: other updates begin an epoch anew
        of_epoch = planner
        if config.bpe_dropout > 0:  # segmented anew, the next epoch while this one is trained on
            more = (epoch + 1) * len(first_epoch) < total_steps
            of_epoch = planner_of(accelerator, corpus.training_pairs(epoch, more), config)
        return of_epoch.loaded(of_epoch.plan_epoch(epoch))

    # --- model and optimizer, new or from a checkpoint
    vocab_sizes = corpus.source_tokenizer.vocab_size, corpus.target_tokenizer.vocab_size
    n_shards = accelerator.num_processes if is_sharded(accelerator) else 1
    model = build_within_memory(partial(build_model, config, *vocab_sizes), device, n_shards).to(device)
    files = {f"{side}_tokenizer.json": tokenizer.to_json() for side, tokenizer in corpus.tokenizers.items()}
    checkpoint = checkpoint_to_resume(config, files, needs_files=True)
    model, optimizer, ema, state = prepare_training(
        accelerator, model, build_optimizer, config, checkpoint, compile_dynamic=True
    )
    evaluated = weights_to_evaluate(accelerator, model, ema)
    epoch_plan = EpochPlan(
        config.max_tokens * n_parts, len(planner.pairs), len(first_epoch), config.seed, config.batching
    )
    total_steps = place_in_epoch(accelerator, config, state, epoch_plan, checkpoint, "tokens")
    if "kept_steps" in state:  # by the run's own number of them
        n_kept = len(state["kept_steps"])
        state["kept_steps"] = state["kept_steps"][n_kept - min(config.average_checkpoints, n_kept) :]
    spread = smoothing_spread(corpus, config, device)
    update = partial(train_update, accelerator, model, optimizer, config, spread)
    if config.find_lr:
        result = find_lr(accelerator, model, optimizer, plan(0), update, count=attrgetter("target_tokens"))
        report_lr_range_test(accelerator, result, Path(config.output_dir))
        return close_accelerator(accelerator)

    # --- the loop: each round looks at what is due, then trains on one update
    run = Run(accelerator, "translation", config, checkpoint, state)
    n_shapes = len({(batch.shape, len(batch.sentences)) for batch in first_epoch})
    run.print("\n".join(filter(None, [str(corpus), *splits.notes, planner.note, note])))
    run.print(
        f"{sum(p.numel() for p in evaluated.parameters()):,} parameters; {total_steps:,} updates, "
        f"{len(first_epoch)} an epoch in {n_shapes} shapes; {planner.padding_share(first_epoch):.1%} padding"
    )
    loop = Loop(
        run,
        model,
        ema,
        state,
        plan,
        total_steps=total_steps,
        unit="tokens",
        validate_every=config.validate_every,
        validate_every_epochs=1,
        patience=config.patience,
        validations_kept=config.average_checkpoints,
        files=files,
    )
    for batch in loop:  # no loop.warm_up(..) before: shapes come and go, so the first updates wait for kernels
        if loop.due("validate"):
            metrics, translations = evaluate(
                accelerator,
                evaluated,
                corpus.valid,
                splits.valid,
                corpus.target_tokenizer,
                config,
                beam_size=1,
                n_translated=config.valid_sentences,
            )
            report_validation(run, loop.step, metrics, translations)
            loop.log_validation(metrics, is_better)
        if loop.due("save"):
            loop.save()
        if loop.last:
            break
        lr = learning_rate(config, loop.step, total_steps)
        sums, gradient_norm = update(batch, loop.step, lr)
        if loop.count(sums, batch.target_tokens, gradient_norm, lr) and ema:
            ema.update(accelerator.unwrap_model(model))

    report_test(run, loop, evaluated, corpus, planner)


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
