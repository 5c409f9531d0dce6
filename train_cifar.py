"""Train an image classifier from scratch: the DAWNBench ResNet, Ultimus, or a net made for speed, on CIFAR-10.

    accelerate launch -q --config_file accelerate_configs/cpu.yaml train_cifar.py demo
    accelerate launch -q --config_file accelerate_configs/t4.yaml train_cifar.py resnet
    accelerate launch -q --config_file accelerate_configs/cpu_bf16.yaml train_cifar.py speedrun --data_dir cifar10

Test accuracy on two CPU cores in bf16 (results/cifar-*.json), 3 seeds: speedrun 93.28 +- 0.15 %, 94.22 +- 0.11 %
over six views of each image, after 6.7 minutes of training; ultimus 68.49 +- 0.10 % after 5.8 minutes, 2 % of the
training images held out. resnet, one seed: 90.27 % after 6 epochs, 95.10 % after 24 in 118 minutes.

The data set lies on the device as uint8, where that has room, and is augmented there. `valid/accuracy` is that of
training images that are held out, and chooses the checkpoint that is tested (the last one where none are).
`test/accuracy` is that of its weights, or of their moving average, on the whole test split, each image once;
`test/accuracy_views` is with test-time augmentation.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from data.errors import DataError
from data.images.augmentation import TIMES_ON_DEVICE, Augmentation, Augmenter
from data.images.drawn_digits import drawn_digits
from data.images.drawn_shapes import drawn_shapes
from data.images.epoch_order import plan_epoch
from data.images.labelled import ImageSplits, LabelledImages, load_image_splits, require_trainable
from data.images.pixels import channel_statistics, normalise
from data.seeding import seed_micro_batch
from figures.classification import write_data_figures, write_result_figures
from figures.curves import plot_curves
from figures.lr_range_test import report_lr_range_test
from figures.model_summary import write_model_summary
from models.batch_norm import has_norms
from models.hard_examples import HardExamples, HardExamplesOutput
from models.resnet import ResNet9
from models.speednet import SpeedNet
from models.test_time_augmentation import Views, least_sure, logits_over_views
from models.ultimus import Ultimus
from training.checkpoints import load_weights
from training.cli import PathFlag, refuse_options_of_other_models, run_script
from training.ema import EMA
from training.errors import UsageError
from training.evaluation import row_of_each_example
from training.gradients import clip_gradients
from training.loop import Loop
from training.lr_finder import find_lr
from training.metrics import better_by, prefixed
from training.model_size import build_within_memory
from training.muon import Muon
from training.precision import fused, product_dtype
from training.processes import local_main_process_first
from training.ranges import (
    BatchSize,
    Count,
    Epochs,
    GradientNorm,
    ImageSide,
    LearningRate,
    Parts,
    Pixels,
    RateDivisor,
    RateFactor,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    WeightDecay,
    Width,
)
from training.resuming import EpochPlan, checkpoint_to_resume, flag_names, place_in_epoch, settings_of_run
from training.run import Run, RunConfig, begin_run, close_accelerator
from training.schedules import one_cycle, set_lr
from training.setup import prepare_training, weights_to_evaluate
from training.sums import add_to


@dataclass(frozen=True)
class Config(RunConfig):
    # --- data
    dataset: str = "uoft-cs/cifar10"  # data set on the hub, or "shapes" or "digits" (embedded)
    data_dir: PathFlag = ""  # parquet, cifar-10-batches-py or -bin, or a folder a class, instead of the hub
    valid_fraction: ShareBelowOne = 0.02  # share of the training images held out to validate on; 0: none
    image_size: ImageSide = 32  # side that images of another size are resized and cropped to, in pixels
    # --- augmentation
    crop_padding: Pixels = 4  # border within which a crop of the image's size is drawn, in pixels; 0: no crop
    padding_mode: Literal["reflect", "zero"] = "reflect"  # what the border shows; zero: the mean colour
    flip: Literal["none", "random", "alternating"] = "random"  # mirror images; alternating: every other epoch
    cutout: Pixels = 0  # side of a square that is blanked, in pixels; 0: none
    brightness: Share = 0.0  # brightness is multiplied by 1 +- this at most
    contrast: Share = 0.0  # contrast likewise
    # --- batches
    batch_size: BatchSize = 500  # images of a micro-batch in one process
    gradient_accumulation_steps: Parts = 1  # micro-batches of a process in an update
    # --- model
    model: Literal["resnet", "ultimus", "speednet"] = "resnet"  # which net
    speednet_widths: tuple[Width, Width, Width] = (64, 256, 256)  # channels of SpeedNet's blocks
    whitened: bool = False  # of resnet: patches are whitened first, by a layer that is not trained
    activation: Literal["relu", "gelu"] = "relu"  # of resnet
    hard_share: ShareAboveZero = 1.0  # share of a batch that is trained on, the hardest for a small net; 1: all
    proxy_widths: tuple[Width, Width, Width] = (32, 64, 64)  # channels of that small net's blocks, a SpeedNet
    # --- optimization
    epochs: Epochs = 24  # passes over the training images; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = (
        "sgd"  # sgd: Nesterov's; muon: for filters, sgd for the rest
    )
    lr: LearningRate = 0.4  # peak of the one-cycle schedule
    pct_start: Share = 0.2  # share of the updates that the rate rises for
    div_factor: RateDivisor = 25.0  # the rate begins at its peak divided by this
    final_div_factor: RateDivisor = 1e4  # it ends at where it began divided by this; both 1: a constant rate
    three_phase: bool = False  # from the peak it first falls, as long as it rose, to where it began
    anneal: Literal["cos", "linear"] = "cos"  # form of the rise and the fall
    momentum: ShareBelowOne = 0.9  # of sgd, also beside muon; the first decay of adam and adamw
    filter_momentum: ShareBelowOne = 0.6  # of muon, for filters
    weight_decay: WeightDecay = 5e-4  # on weights; none on biases, norms, and what muon scales to a fixed norm
    bias_lr_factor: RateFactor = 1.0  # the rate of biases and norms, as a multiple
    head_lr_factor: RateFactor = 1.0  # the rate of the last layer, as a multiple
    label_smoothing: ShareBelowOne = 0.0  # share of the target spread evenly over the classes
    max_grad_norm: GradientNorm = 0.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.0  # moving average of the weights, which is what is evaluated; 0: none
    ema_narrows: bool = False  # its window is never longer than the updates left: it ends at the last weights
    lookahead: Count = 0  # updates after which the weights go back to the average, which holds ever more; 0: never
    seed: Seed = 0  # of the initial weights, the order of the images and their augmentation
    # --- evaluation
    evaluate_every: Count = 1  # epochs between evaluations of the validation split; 0: only at the end
    patience: Count = 0  # end after so many evaluations without a better accuracy; 0: never
    views: Views = "mirror"  # views of a test image for test/accuracy_views
    eval_batch_size: BatchSize = 500  # images evaluated at a time


# On a resume these may be given anew; another of the others would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps lr pct_start div_factor final_div_factor three_phase anneal momentum filter_momentum
    weight_decay bias_lr_factor head_lr_factor max_grad_norm ema_decay ema_narrows lookahead evaluate_every patience
    views eval_batch_size data_dir checkpointing_steps checkpoints_total_limit log_every compile deterministic
    """
)

RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "ten shapes drawn by code; no download, a minute on two CPU cores",
        Config(
            recipe="demo",
            dataset="shapes",
            model="speednet",
            speednet_widths=(32, 128, 128),
            optimizer="muon",
            lr=0.24,
            pct_start=0.0,
            anneal="linear",
            momentum=0.85,
            weight_decay=0.2,
            bias_lr_factor=440,
            head_lr_factor=0.085,
            crop_padding=2,
            flip="alternating",
            label_smoothing=0.2,
            batch_size=200,
            epochs=5,
        ),
    ),
    "resnet": (
        "the DAWNBench ResNet of 6.6 M parameters, 24 epochs",
        Config(
            recipe="resnet",
            optimizer="muon",
            lr=0.1,
            pct_start=0.1,
            anneal="linear",
            bias_lr_factor=4,
            head_lr_factor=4,
            flip="alternating",
            cutout=12,
            label_smoothing=0.1,
            ema_decay=0.995,
            ema_narrows=True,
        ),
    ),
    "ultimus": (
        "Ultimus of 26 k parameters, 24 epochs",
        Config(
            recipe="ultimus",
            model="ultimus",
            optimizer="adamw",
            lr=0.01,
            weight_decay=0.0,
            crop_padding=0,
            batch_size=50,
            max_grad_norm=1.0,
            ema_decay=0.998,
            evaluate_every=3,
            log_every=100,
        ),
    ),
    "resnet-course": (
        "the ResNet as a course had it: Adam and one-cycle to the rate of a range test",
        Config(
            recipe="resnet-course",
            optimizer="adam",
            lr=5.54e-2,
            pct_start=5 / 24,
            div_factor=100,
            final_div_factor=100,
            anneal="linear",
            weight_decay=1e-4,
            batch_size=512,
            cutout=8,
        ),
    ),
    "ultimus-course": (
        "Ultimus as a course had it: Adam and one-cycle to 0.02",
        Config(
            recipe="ultimus-course",
            model="ultimus",
            optimizer="adam",
            lr=0.02,
            pct_start=0.3,
            weight_decay=0.0,
            crop_padding=0,
            batch_size=128,
        ),
    ),
    "speedrun": (
        "SpeedNet with Muon and lookahead, 9 epochs",
        Config(
            recipe="speedrun",
            model="speednet",
            optimizer="muon",
            lr=0.24,
            pct_start=0.0,
            anneal="linear",
            momentum=0.85,
            weight_decay=0.2,
            bias_lr_factor=440,
            head_lr_factor=0.085,
            crop_padding=2,
            flip="alternating",
            label_smoothing=0.2,
            batch_size=2000,
            epochs=9,
            ema_decay=0.95,
            lookahead=5,
            valid_fraction=0,
            views="six",
        ),
    ),
}


def load_splits(config: Config) -> ImageSplits:
    """Training, validation and test images, on the CPU."""
    embedded = {"shapes": drawn_shapes, "digits": drawn_digits}.get(config.dataset)
    if embedded and not config.data_dir:
        if config.image_size != Config.image_size:
            raise UsageError(
                f"--image_size is for images of your own: --dataset {config.dataset} draws them at its size"
            )
        train_images, train_labels, test_images, test_labels, names = embedded()
        train_images = train_images.expand(-1, 3, -1, -1)
        test_images = test_images.expand(-1, 3, -1, -1)
        splits = ImageSplits.of(train_images, train_labels, test_images, test_labels, names)
    else:
        splits = load_image_splits(config.dataset, config.data_dir or None, image_size=config.image_size)
    return splits.with_validation(config.valid_fraction)


def build_augmenter(config: Config, images: Tensor, mean: Tensor, std: Tensor) -> Augmenter:
    """What crops, mirrors and normalises images (N, 3, S, S) uint8 on their device."""
    augmentation = Augmentation(
        crop_padding=config.crop_padding,
        padding_mode=config.padding_mode,
        flip=config.flip,
        cutout=config.cutout,
        brightness=config.brightness,
        contrast=config.contrast,
    )
    return Augmenter(images, augmentation, mean, std, config.seed)


def build_model(config: Config, n_classes: int) -> nn.Module:
    """The net: normalised images (B, 3, S, S) -> logits (B, K)."""
    if config.model == "speednet":
        net: nn.Module = SpeedNet(n_classes, widths=config.speednet_widths)
    elif config.model == "ultimus":
        net = Ultimus(n_classes)
    else:
        net = ResNet9(n_classes, whitened=config.whitened, activation=config.activation)
    if config.hard_share == 1:
        return net
    return HardExamples(net, SpeedNet(n_classes, widths=config.proxy_widths), config.hard_share)


def check_side(model: nn.Module, config: Config, side: int) -> None:
    """Raise UsageError for images (side in pixels) of which the net's poolings would leave too little."""
    smallest = max(getattr(net, "SMALLEST_SIDE", 1) for net in model.modules())
    if side < smallest:
        raise UsageError(
            f"--model {config.model} needs images of {smallest} pixels a side or more: these have {side}"
        )


def build_optimizer(model: nn.Module, config: Config, mixed_precision: str) -> Optimizer:
    """Every trained parameter in one group: filters and matrices, the last layer, and vectors (biases, norms)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    heads = [p for name, p in model.named_parameters() if name.endswith("classifier.weight")]
    filters = [p for p in trained if p.ndim > 1 and all(p is not head for head in heads)]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [
        {"params": filters, "weight_decay": config.weight_decay},
        {"params": heads, "weight_decay": config.weight_decay, "lr_factor": config.head_lr_factor},
        {"params": vectors, "weight_decay": 0.0, "lr_factor": config.bias_lr_factor},
    ]
    if config.optimizer == "muon":
        net = model.net if isinstance(model, HardExamples) else model
        groups[0] |= {"orthogonal": True, "momentum": config.filter_momentum, "keeps_norm": not has_norms(net)}
        return Muon(groups, config.lr, config.momentum, dtype=product_dtype(mixed_precision))
    if config.optimizer == "adam":  # as of 2014: its own decays, and weight decay within the gradient
        return torch.optim.Adam(groups, config.lr, betas=(config.momentum, 0.999), fused=fused(mixed_precision))
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, betas=(config.momentum, 0.99), fused=fused(mixed_precision))
    return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=True, fused=fused(mixed_precision))


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


def objective(logits: Tensor, labels: Tensor, config: Config) -> dict[str, Tensor]:
    """What is trained on ("loss") and what is logged beside it, as sums over the images.

    logits (B, K) float32, labels (B,).
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="sum")
    nll = F.cross_entropy(logits.detach(), labels, reduction="sum")  # comparable with that of validation
    n_right = (logits.argmax(1) == labels).sum()
    return {"loss": loss, "nll": nll, "accuracy": n_right}


def objective_on_hardest(output: HardExamplesOutput, labels: Tensor, config: Config) -> dict[str, Tensor]:
    """The objective where a small net picked the images that are trained on, of a batch with labels (B,).

    Trained on is "loss", that of both nets. What is of the images that were picked counts as if of all.
    """
    terms = objective(output.logits.float(), labels[output.picked], config)
    terms = {name: value * (len(labels) / len(output.picked)) for name, value in terms.items()}
    proxy_labels = labels[: len(output.proxy_logits)]
    proxy_loss = objective(output.proxy_logits.float(), proxy_labels, config)["loss"]
    proxy_loss = proxy_loss * (len(labels) / len(proxy_labels))
    return {**terms, "loss": terms["loss"] + proxy_loss, "proxy_loss": proxy_loss}


def average_weights(ema: EMA, model: nn.Module, config: Config, step: int, total_steps: int) -> None:
    """Move the average of the weights after `step` updates; with lookahead, take the bare `model` back to it."""
    if not config.lookahead:
        ema.update(model, total_steps - step if config.ema_narrows else None)
    elif step % config.lookahead == 0 or step == total_steps:
        # As in hlb-CIFAR10 and airbench: at first the average is where the weights are.
        ema.look_ahead(model, config.ema_decay**config.lookahead * (step / total_steps) ** 3)


def train_update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    augmenter: Augmenter,
    labels: Tensor,
    config: Config,
    ids: Tensor,
    step: int,
    lr: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update `step`, on the images `ids` (B,); this process takes its share of the micro-batches.

    Returns this process's sums of the objective, by name, and the gradient norm.
    """
    model.train()
    set_lr(optimizer, lr)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    micro_batches = ids.tensor_split(n_parts)
    sums: dict[str, Tensor] = {}
    for part in range(accelerator.process_index, n_parts, accelerator.num_processes):
        seed_micro_batch(config.seed, step, part)
        images = augmenter.batch(micro_batches[part])
        targets = labels[micro_batches[part]]
        with accelerator.accumulate(model):
            if config.hard_share < 1:
                terms = objective_on_hardest(model(images, targets), targets, config)
            else:
                terms = objective(model(images).float(), targets, config)
            # The mean over all images of the update: DDP averages over processes and backward() divides by
            # the accumulation steps, so the sum is scaled up by both.
            accelerator.backward(terms["loss"] * (n_parts / len(ids)))
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
    split: LabelledImages,
    mean: Tensor,
    std: Tensor,
    config: Config,
    views: Views = "one",
) -> tuple[dict[str, float], Tensor]:
    """Mean negative log-likelihood (nats) and accuracy over a split's images, which lie on the device.

    Every process takes a share and all get the same answer: (metrics, class probabilities (N, K)). `model` is a
    bare one, not the prepared.
    """
    model.eval()

    def log_probabilities_of(some: Tensor, views: Views) -> Tensor:
        """Of the images `some` (n,): (n, K)."""

        def of_batch(ids: Tensor) -> tuple[Tensor]:
            with accelerator.autocast():
                logits = logits_over_views(model, normalise(split.images[some[ids]], mean, std), views)
            return (logits.float().log_softmax(1),)

        (log_probabilities,) = row_of_each_example(accelerator, len(some), config.eval_batch_size, of_batch)
        return log_probabilities

    every = torch.arange(len(split), device=split.labels.device)
    log_probabilities = log_probabilities_of(every, "mirror" if views == "six-unsure" else views)
    if views == "six-unsure":
        unsure = least_sure(log_probabilities)
        log_probabilities[unsure] = log_probabilities_of(unsure, "six")
    metrics = {
        "loss": float(F.nll_loss(log_probabilities, split.labels)),
        "accuracy": float((log_probabilities.argmax(1) == split.labels).float().mean()),
        "n_images": len(split),
    }
    return metrics, log_probabilities.exp()


def draw_curves(run: Run, loop: Loop) -> None:
    """Write the figures of what was logged, on the main process."""
    panels = {"loss": ["train/nll", "valid/loss"], "accuracy": ["train/accuracy", "valid/accuracy"]}
    if run.accelerator.is_main_process:
        plot_curves(run.metrics_path, run.figures_dir, panels | {"lr": ["lr"], "throughput": [loop.rate_name]})


def report_test(run: Run, loop: Loop, model: nn.Module, splits: ImageSplits, mean: Tensor, std: Tensor) -> None:
    """Score the chosen weights on the test split, without and with test-time augmentation; end the run."""
    accelerator, config = run.accelerator, run.config
    run.release_signals()
    load_weights(model, loop.checkpoint_to_test)
    summary = loop.summary()
    if splits.valid and config.views != "one":
        with_views, _ = evaluate(accelerator, model, splits.valid, mean, std, config, config.views)
        summary["valid/accuracy_views"] = with_views["accuracy"]
    if not config.final_test:
        draw_curves(run, loop)
        return run.finish_untested(summary, loop.train_seconds, model, step=loop.step)
    metrics, probabilities = evaluate(accelerator, model, splits.test, mean, std, config)
    run.log(prefixed("test", metrics), loop.step, loop.epochs_done)
    summary |= prefixed("test", metrics)
    run.print(f"test accuracy {metrics['accuracy']:.2%} on {len(splits.test):,} images, loss {metrics['loss']:.3f}")
    if config.views != "one":
        with_views, _ = evaluate(accelerator, model, splits.test, mean, std, config, config.views)
        summary |= {"test/accuracy_views": with_views["accuracy"], "views": config.views}
        run.print(f"test accuracy over the views of {config.views!r}: {with_views['accuracy']:.2%}")
    draw_curves(run, loop)
    if accelerator.is_main_process:
        test = splits.test.to(torch.device("cpu"))
        write_result_figures(run.figures_dir, test.images, test.labels, probabilities.cpu(), splits.class_names)
        run.log_figures(sorted(run.figures_dir.glob("*.png")), loop.step)
    run.finish(summary, loop.train_seconds, model)
    run.print(f"figures in {run.figures_dir}")


def main(config: Config) -> None:
    old_rules = {"valid_fraction": 0.0}  # runs of before there was one held out nothing
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "cifar", old_rules)
    options = {"speednet": ("speednet_widths",), "resnet": ("whitened", "activation")}
    refuse_options_of_other_models(config, RECIPES, options)
    if config.lookahead and not config.ema_decay:
        raise UsageError("--lookahead goes back to an average of the weights: add --ema_decay 0.95")
    if config.flip == "none" and config.views != "one":
        raise UsageError(f"--views {config.views} are mirrored, training images are not: add --views one")
    accelerator = begin_run(config)
    device = accelerator.device
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    own_parts = range(accelerator.process_index, n_parts, accelerator.num_processes)
    update_size = config.batch_size * n_parts

    # --- data, on the device where that has room
    with local_main_process_first(accelerator):  # the others find the decoded images in the cache
        splits = load_splits(config)
    require_trainable(splits, n_parts)
    statistics = {"train": channel_statistics(splits.train.images), "test": channel_statistics(splits.test.images)}
    mean, std = (255 * statistics["train"][name].to(device, torch.float32) for name in ("mean", "std"))
    splits = splits.near(device, TIMES_ON_DEVICE)
    train, valid = splits.train, splits.valid
    augmenter = build_augmenter(config, train.images, mean, std)
    # What a checkpoint keeps of the data: tools need it, and a resume must find the same.
    described = {"class_names": splits.class_names, "n_train": len(train), "image_size": train.images.shape[-1]}
    described |= {"mean": mean.tolist(), "std": std.tolist()}
    files = {"data.json": json.dumps(described, indent=1)}

    def plan(epoch: int, seen: int = 0) -> Sequence[Tensor]:
        augmenter.draw(epoch)
        updates = plan_epoch(len(train), update_size, config.seed, epoch, device, seen)
        return augmenter.ahead(updates, own_parts, n_parts)

    # --- model and optimizer, new or from a checkpoint
    model = build_within_memory(partial(build_model, config, len(splits.class_names)), device)
    check_side(model, config, train.images.shape[-1])
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    if hasattr(model, "init_whitening"):
        model.init_whitening(normalise(train.images[:5000], mean, std))
    checkpoint = checkpoint_to_resume(config, files)
    model, optimizer, ema, state = prepare_training(accelerator, model, build_optimizer, config, checkpoint)
    evaluated = weights_to_evaluate(accelerator, model, ema)
    epoch_plan = EpochPlan(update_size, len(train), math.ceil(len(train) / update_size), config.seed)
    total_steps = place_in_epoch(accelerator, config, state, epoch_plan, checkpoint, "images")
    update = partial(train_update, accelerator, model, optimizer, augmenter, train.labels, config)
    if config.find_lr:
        result = find_lr(accelerator, model, optimizer, plan(0), update, count=len, max_lr=10.0)
        report_lr_range_test(accelerator, result, Path(config.output_dir))
        return close_accelerator(accelerator)

    # --- the loop: each round looks at what is due, then trains on one update
    run = Run(accelerator, "cifar", config, checkpoint, state)
    run.print(
        f"{len(train):,} training, {len(valid or ()):,} validation and {len(splits.test):,} test images of "
        f"{len(splits.class_names)} classes; {sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{total_steps:,} updates, {epoch_plan.n_updates:,} an epoch"
    )
    for note in splits.notes:
        run.print(note)
    if accelerator.is_main_process and not config.eval_only:
        views = augmenter.preview(image_id=0, n_epochs=20)
        write_data_figures(
            run.figures_dir, statistics, train.images.cpu(), train.labels.cpu(), splits.class_names, views.cpu()
        )
        example = normalise(train.images[:1], mean, std)
        write_model_summary(run.figures_dir / "model_summary.png", evaluated, example)
    loop = Loop(
        run,
        model,
        ema,
        state,
        plan,
        total_steps=total_steps,
        unit="images",
        validates=valid is not None,
        validate_every_epochs=config.evaluate_every,
        patience=config.patience,
        files=files,
    )
    loop.warm_up(optimizer, update)
    for ids in loop:
        if loop.due("validate") and valid:
            metrics, _ = evaluate(accelerator, evaluated, valid, mean, std, config)
            run.print(f"epoch {loop.epochs_done:g}: validation accuracy {metrics['accuracy']:.2%}")
            loop.log_validation(metrics, better_by("accuracy", "loss"))
        if loop.due("save"):
            loop.save()
        if loop.last:
            break
        lr = learning_rate(config, loop.step, total_steps)
        sums, gradient_norm = update(ids, loop.step, lr)
        if loop.count(sums, len(ids), gradient_norm, lr) and ema:
            average_weights(ema, accelerator.unwrap_model(model), config, loop.step, total_steps)

    report_test(run, loop, evaluated, splits, mean, std)


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
