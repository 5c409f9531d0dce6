"""Train an image classifier from scratch: the DAWNBench ResNet, Ultimus, or a net made for speed, on CIFAR-10.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_cifar.py demo
    accelerate launch --config_file accelerate_configs/t4.yaml train_cifar.py resnet
    accelerate launch --config_file accelerate_configs/cpu_bf16.yaml train_cifar.py speedrun --data_dir cifar10

Test accuracy on two CPU cores in bf16 (results/cifar-*.json), 3 seeds: speedrun 93.34 +- 0.31 %, 94.28 +- 0.05 %
over six views of each image, after 8.9 minutes of training; ultimus 68.72 +- 0.24 % after 6.2 minutes. resnet, one
seed: 90.27 % after 6 epochs, 95.10 % after 24 in 118 minutes.

The data set lies on the device as uint8 and is augmented there, a batch at a time. Accuracy is that of the last
weights (their moving average where there is one) on the whole test split, each image once, without test-time
augmentation; `test/accuracy_views` is with it.
"""

import itertools
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from tyro.conf import Suppress

from data.augmentation import Augmentation, Augmenter, channel_statistics, normalise
from data.drawn_digits import drawn_digits
from data.drawn_shapes import drawn_shapes
from data.epoch_order import plan_epoch
from data.errors import DataError
from data.labelled_images import ImageSplits, load_image_splits, require_trainable
from data.seeding import Stream, seed_global_generators
from models.batch_norm import synchronize_batch_norm
from models.resnet import ResNet9
from models.speednet import SpeedNet
from models.ultimus import Ultimus
from models.views import Views, logits_over_views
from training.checkpoints import check_files, find_checkpoint, load_checkpoint, load_weights, save_checkpoint
from training.classifier_figures import write_data_figures, write_result_figures
from training.cli import PathFlag, run_script
from training.compilation import compile_model
from training.ema import EMA
from training.errors import UsageError
from training.figures import plot_curves
from training.lr_finder import lr_range_test, preserved_state, report_lr_range_test
from training.metrics import MetricWindow
from training.model_size import build_within_memory
from training.model_summary import write_model_summary
from training.muon import Muon
from training.profiling import profiler
from training.ranges import (
    BatchSize,
    Count,
    Epochs,
    GradientNorm,
    ImageSide,
    LearningRate,
    Parts,
    Pixels,
    RateFactor,
    Seed,
    Share,
    ShareBelowOne,
    WeightDecay,
    Width,
)
from training.resuming import EpochPlan, begin_next_epoch, epochs_done, flag_names, place_in_epoch, settings_of_run
from training.run import Run, close_accelerator, open_accelerator, own_folder, sum_over_processes
from training.schedules import one_cycle, set_lr


@dataclass(frozen=True)
class Config:
    recipe: Suppress[str]  # name of the recipe, for the run's folder and the tracker
    # --- data
    dataset: str = "uoft-cs/cifar10"  # data set on the hub, or "shapes" or "digits" (embedded)
    data_dir: PathFlag = ""  # parquet, cifar-10-batches-py or -bin, or a folder a class, instead of the hub
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
    # --- optimization
    epochs: Epochs = 24  # passes over the training images; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"  # sgd: Nesterov's; muon: for filters, sgd for the rest
    lr: LearningRate = 0.4  # peak of the one-cycle schedule
    pct_start: Share = 0.2  # share of the updates that the rate rises for
    anneal: Literal["cos", "linear"] = "cos"  # form of the rise and the fall
    momentum: ShareBelowOne = 0.9  # of sgd, also beside muon; adamw's first decay
    weight_decay: WeightDecay = 5e-4  # on weights; none on biases, norms, and what muon scales to a fixed norm
    bias_lr_factor: RateFactor = 1.0  # the rate of biases and norms, as a multiple
    head_lr_factor: RateFactor = 1.0  # the rate of the last layer, as a multiple
    label_smoothing: ShareBelowOne = 0.0  # share of the target spread evenly over the classes
    max_grad_norm: GradientNorm = 0.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.0  # moving average of the weights, which is what is evaluated; 0: none
    ema_narrows: bool = False  # its window is never longer than the updates left: it ends at the last weights
    seed: Seed = 0  # of the initial weights, the order of the images and their augmentation
    # --- evaluation
    evaluate_every: Count = 1  # epochs between evaluations on the test split; 0: only at the end
    views: Views = "mirror"  # views of a test image for test/accuracy_views
    eval_batch_size: BatchSize = 500  # images evaluated at a time
    eval_only: bool = False  # only evaluate the newest checkpoint of --resume, or of --output_dir
    # --- run
    output_dir: PathFlag = ""  # where the run is written; default runs/cifar/<recipe>
    resume: PathFlag = ""  # "latest", a run folder or a checkpoint to go on from, with its run's own settings
    resume_changes: bool = False  # accept flags that make a resume another run; what they do to it is said
    checkpointing_steps: Count = 0  # updates between checkpoints; 0: one at each evaluation
    checkpoints_total_limit: Count = 2  # newest checkpoints that are kept; 0: all
    log_every: Count = 20  # updates between log lines
    find_lr: bool = False  # run a learning-rate range test, suggest a rate and end
    compile: bool = False  # torch.compile the model
    profile: bool = False  # profile a few updates: table and trace in <output_dir>/profile
    tracker: Literal["wandb", "none"] = "wandb"  # where metrics go besides metrics.jsonl


# On a resume the first may be given anew; the second would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps lr pct_start anneal momentum weight_decay bias_lr_factor head_lr_factor max_grad_norm
    ema_decay ema_narrows evaluate_every views eval_batch_size data_dir checkpointing_steps
    checkpoints_total_limit log_every compile
    """
)
MAKES_THE_RUN = flag_names(
    """
    recipe dataset image_size crop_padding padding_mode flip cutout brightness contrast model speednet_widths
    optimizer label_smoothing seed
    """
)

RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "ten shapes drawn by code; no download, a minute on two CPU cores",
        Config(
            recipe="demo", dataset="shapes", model="speednet", speednet_widths=(32, 128, 128), optimizer="muon",
            lr=0.24, pct_start=0.0, anneal="linear", momentum=0.85, weight_decay=0.2, bias_lr_factor=440,
            head_lr_factor=0.085, crop_padding=2, flip="alternating", label_smoothing=0.2, batch_size=200, epochs=5,
        ),
    ),
    "resnet": (
        "the DAWNBench ResNet of 6.6 M parameters, 24 epochs",
        Config(
            recipe="resnet", optimizer="muon", lr=0.1, pct_start=0.1, anneal="linear", bias_lr_factor=4,
            head_lr_factor=4, flip="alternating", cutout=12, label_smoothing=0.1, ema_decay=0.995,
            ema_narrows=True,
        ),
    ),
    "ultimus": (
        "Ultimus of 26 k parameters, 24 epochs",
        Config(
            recipe="ultimus", model="ultimus", optimizer="adamw", lr=0.01, weight_decay=0.0, crop_padding=0,
            batch_size=50, max_grad_norm=1.0, ema_decay=0.998, evaluate_every=3, log_every=100,
        ),
    ),
    "speedrun": (
        "SpeedNet with Muon, 10 epochs",
        Config(
            recipe="speedrun", model="speednet", optimizer="muon", lr=0.24, pct_start=0.0, anneal="linear",
            momentum=0.85, weight_decay=0.2, bias_lr_factor=440, head_lr_factor=0.085, crop_padding=2,
            flip="alternating", label_smoothing=0.2, batch_size=2000, epochs=10, evaluate_every=0, views="six",
        ),
    ),
}  # fmt: skip


def load_splits(config: Config) -> ImageSplits:
    embedded = {"shapes": drawn_shapes, "digits": drawn_digits}.get(config.dataset)
    if embedded and not config.data_dir:
        train_images, train_labels, test_images, test_labels, names = embedded()
        train_images, test_images = (images.expand(-1, 3, -1, -1) for images in (train_images, test_images))
        return ImageSplits.of(train_images, train_labels, test_images, test_labels, names)
    return load_image_splits(config.dataset, config.data_dir or None, image_size=config.image_size)


def check_side(model: str, side: int) -> None:
    """Raise UsageError for images (side in pixels) of which the net's poolings would leave too little."""
    smallest = {"resnet": 16, "speednet": 17, "ultimus": 8}[model]  # two positions are left: batch norm wants them
    if side < smallest:
        raise UsageError(f"--model {model} needs images of {smallest} pixels a side or more: these have {side}")


def build_model(config: Config, n_classes: int) -> nn.Module:
    """The net: normalised images (B, 3, S, S) -> logits (B, K)."""
    if config.model == "speednet":
        return SpeedNet(n_classes, widths=tuple(config.speednet_widths))
    return {"resnet": ResNet9, "ultimus": Ultimus}[config.model](n_classes)


def build_optimizer(model: nn.Module, config: Config, fp16: bool) -> torch.optim.Optimizer:
    """Every trained parameter in one group: filters and matrices, the last layer, and vectors (biases, norms)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    head = model.classifier.weight
    groups = [
        {"params": [p for p in trained if p.ndim > 1 and p is not head], "weight_decay": config.weight_decay},
        {"params": [head], "weight_decay": config.weight_decay, "lr_factor": config.head_lr_factor},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0, "lr_factor": config.bias_lr_factor},
    ]
    if config.optimizer == "muon":
        # Ultimus has no norms.
        groups[0] |= {"orthogonal": True, "momentum": 0.6, "keeps_norm": config.model == "ultimus"}
        return Muon(groups, config.lr, config.momentum)
    fused = not fp16  # fused hides from Accelerate that fp16 skipped a step
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, (config.momentum, 0.99), fused=fused)
    return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=True, fused=fused)


def train_update(
    accelerator: Accelerator, model, optimizer, augmenter: Augmenter, labels: Tensor, ids: Tensor,
    config: Config, lr: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One optimizer update on the images `ids` (B,); this process takes its share of the micro-batches.

    Returns its sums of the smoothed loss and of the correct predictions (2,), and the gradient norm.
    """
    set_lr(optimizer, lr)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    sums = torch.zeros(2, device=accelerator.device)
    for part in ids.tensor_split(n_parts)[accelerator.process_index :: accelerator.num_processes]:
        images, targets = augmenter.batch(part), labels[part]
        with accelerator.accumulate(model):
            logits = model(images).float()
            loss = F.cross_entropy(logits, targets, label_smoothing=config.label_smoothing, reduction="sum")
            # The mean over all images of the update: DDP averages over processes and backward() divides by
            # the accumulation steps, so the sum is scaled up by both.
            accelerator.backward(loss * (n_parts / len(ids)))
            if accelerator.sync_gradients:
                gradient_norm = accelerator.clip_grad_norm_(
                    model.parameters(),
                    config.max_grad_norm or math.inf,  # inf: only measure
                )
            optimizer.step()
            optimizer.zero_grad()
        sums += torch.stack([loss.detach(), (logits.argmax(1) == targets).sum()])
    return sums, gradient_norm


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, images: Tensor, labels: Tensor, mean: Tensor, std: Tensor,
    batch_size: int, views: Views = "one",
) -> tuple[dict[str, float], Tensor]:  # fmt: skip
    """Mean negative log-likelihood (nats) and accuracy over images (N, C, S, S) uint8 with labels (N,).

    Every process takes a share and all get the same answer: (metrics, class probabilities (N, K)).
    `model` is a plain one, not the prepared.
    """
    model.eval()
    n = len(images)
    mine = torch.arange(accelerator.process_index, n, accelerator.num_processes, device=images.device)
    logits = []
    for ids in mine.split(batch_size):
        with accelerator.autocast():
            logits.append(logits_over_views(model, normalise(images[ids], mean, std), views).float())
    logits = torch.cat(logits)
    # Each image has one row, filled by one process: their sum holds each once.
    rows = torch.zeros(n, logits.shape[1] + 1, device=images.device)
    rows[mine] = F.pad(logits.log_softmax(1), (0, 1), value=1.0)
    rows = sum_over_processes(accelerator, rows)
    log_probabilities, times_counted = rows[:, :-1], rows[:, -1]
    if not bool((times_counted == 1).all()):
        raise RuntimeError("an image was evaluated more than once or never")
    return {
        "loss": float(F.nll_loss(log_probabilities, labels)),
        "accuracy": float((log_probabilities.argmax(1) == labels).float().mean()),
        "n_images": int(times_counted.sum()),
    }, log_probabilities.exp()


def find_lr(accelerator, model, optimizer, augmenter, labels: Tensor, config: Config) -> None:
    """Range test over the first updates; prints the suggestion and writes figures/lr_range_test.png."""
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    updates = (
        ids
        for epoch in itertools.count()
        for ids in plan_epoch(len(labels), config.batch_size * n_parts, config.seed, epoch, labels.device)
    )

    def update_at(lr: float) -> Tensor:
        ids = next(updates)
        sums, _ = train_update(accelerator, model, optimizer, augmenter, labels, ids, config, lr)
        return sum_over_processes(accelerator, sums)[0] / len(ids)

    augmenter.draw(0)
    result = lr_range_test(update_at, accelerator=accelerator, model=model, optimizer=optimizer, max_lr=10.0)
    report_lr_range_test(accelerator, result, Path(config.output_dir))
    close_accelerator(accelerator)


def main(config: Config) -> None:
    config = replace(config, output_dir=config.output_dir or f"runs/cifar/{config.recipe}")
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "cifar")
    if config.model != "speednet" and config.speednet_widths != RECIPES[config.recipe][1].speednet_widths:
        raise UsageError(f"--speednet_widths is none of the options of --model {config.model}")
    if config.flip == "none" and config.views != "one":
        raise UsageError(f"--views {config.views} are mirrored, training images are not: add --views one")
    accelerator = open_accelerator(config.gradient_accumulation_steps)
    own_folder(accelerator, config.output_dir)
    device = accelerator.device
    seed_global_generators(Stream.INITIAL_WEIGHTS, config.seed)

    # --- data and model, before anything is written
    with accelerator.local_main_process_first():  # the others find the decoded images in the cache
        splits = load_splits(config)
    n_classes, n_train = len(splits.class_names), len(splits.train)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    require_trainable(splits, n_parts)
    train_images, train_labels = splits.train.images.to(device), splits.train.labels.to(device)
    test_images, test_labels = splits.test.images.to(device), splits.test.labels.to(device)
    statistics = channel_statistics(splits.train.images)
    mean, std = (255 * statistics[name].to(device, torch.float32) for name in ("mean", "std"))
    augmentation = Augmentation(
        config.crop_padding, config.padding_mode, config.flip, config.cutout, config.brightness, config.contrast
    )
    augmenter = Augmenter(train_images, augmentation, mean, std, config.seed)
    check_side(config.model, train_images.shape[-1])
    model = build_within_memory(partial(build_model, config, n_classes), device)
    model = model.to(device, memory_format=torch.channels_last)
    if config.model != "resnet":
        model.init_whitening(normalise(train_images[:5000], mean, std))
    update_size = config.batch_size * n_parts
    updates_per_epoch = math.ceil(n_train / update_size)
    # What a checkpoint keeps of the data: tools need it, and a resume must find the same.
    described = {"class_names": splits.class_names, "n_train": n_train, "image_size": train_images.shape[-1],
                 "mean": mean.tolist(), "std": std.tolist()}  # fmt: skip
    data_file = {"data.json": json.dumps(described, indent=1)}

    checkpoint = None
    if config.resume or config.eval_only:
        resume = config.resume or config.output_dir
        checkpoint = find_checkpoint(resume, Path(config.output_dir), prefer_best=config.eval_only)
    if checkpoint and not config.resume_changes:
        check_files(checkpoint, data_file)
    ema = EMA(model, config.ema_decay) if config.ema_decay > 0 else None
    if accelerator.num_processes > 1:
        model = synchronize_batch_norm(model, device)
    optimizer = build_optimizer(model, config, fp16=accelerator.mixed_precision == "fp16")
    if config.compile:
        compile_model(model, device)
    model, optimizer = accelerator.prepare(model, optimizer)
    evaluated = ema.module if ema else accelerator.unwrap_model(model)
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0}
    window = MetricWindow(accelerator, ("train/loss", "train/accuracy"), rate="train/images_per_second")
    seed_global_generators(Stream.DROPOUT, config.seed, accelerator.process_index)
    if checkpoint:
        state = load_checkpoint(accelerator, model, checkpoint, ema, config.optimizer, config.resume_changes)
        window.load(state["window"])
    planned = EpochPlan(update_size, n_train, updates_per_epoch, config.seed)
    place_in_epoch(accelerator, config, state, planned, checkpoint, "images")
    total_steps = config.max_train_steps or config.epochs * updates_per_epoch + state["extra_steps"]
    if config.find_lr:
        return find_lr(accelerator, model, optimizer, augmenter, train_labels, config)

    run = Run(accelerator, "cifar", config, checkpoint, state)
    run.print(
        f"{n_train:,} training and {len(splits.test):,} test images of {n_classes} classes; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{total_steps:,} updates, {updates_per_epoch} an epoch"
    )
    if accelerator.is_main_process and not config.eval_only:
        views = []
        for epoch in range(20):
            augmenter.draw(epoch)
            views.append(augmenter.batch(torch.zeros(1, dtype=torch.int64, device=device)))
        pixels = (torch.cat(views) * std[:, None, None] + mean[:, None, None]).clamp(0, 255) / 255
        split_statistics = {"train": statistics, "test": channel_statistics(splits.test.images)}
        write_data_figures(run.figures_dir, split_statistics, splits.train.images, splits.train.labels,
                           splits.class_names, pixels.cpu())  # fmt: skip
        write_model_summary(run.figures_dir / "model_summary.png", evaluated, views[0])

    def save() -> Path:
        saved = {**state, **run.state(), "window": window.state(), "config": asdict(config)}
        return save_checkpoint(accelerator, model, run.output_dir, saved, ema=ema, files=data_file,
                               total_limit=config.checkpoints_total_limit)  # fmt: skip

    def evaluate_test(epoch: float, views: Views = "one") -> tuple[dict[str, float], Tensor]:
        metrics, probabilities = evaluate(
            accelerator, evaluated, test_images, test_labels, mean, std, config.eval_batch_size, views
        )
        if views == "one":
            run.log({f"test/{name}": value for name, value in metrics.items()}, state["step"], epoch)
        return metrics, probabilities

    def due(every: int) -> bool:
        return every > 0 and state["step"] % every == 0

    compile_seconds = 0.0
    done = config.eval_only or state["step"] >= total_steps
    if config.compile and not done:  # before the clock runs, and without a trace in weights or random numbers
        started = time.perf_counter()
        with preserved_state(accelerator, model, optimizer):
            augmenter.draw(0)
            for ids in plan_epoch(n_train, update_size, config.seed, 0, device)[:: max(updates_per_epoch - 1, 1)]:
                train_update(accelerator, model, optimizer, augmenter, train_labels, ids, config, 0.0)
        compile_seconds = time.perf_counter() - started
    last_checkpoint = checkpoint
    bar = run.progress_bar(total_steps, state["step"])
    with bar, profiler(run.output_dir, accelerator, enabled=config.profile) as profile:
        window.start()
        while not done:
            augmenter.draw(state["epoch"])
            updates = plan_epoch(n_train, update_size, config.seed, state["epoch"], device, state["seen_before"])
            state["updates_of_epoch"] = len(updates)
            for ids in updates[state["updates_in_epoch"] :]:
                lr = one_cycle(state["step"], total_steps=total_steps, max_lr=config.lr, pct_start=config.pct_start,
                               anneal=config.anneal)  # fmt: skip
                sums, gradient_norm = train_update(
                    accelerator, model, optimizer, augmenter, train_labels, ids, config, lr
                )
                state["updates_in_epoch"] += 1
                if accelerator.optimizer_step_was_skipped:  # an fp16 overflow: not an update
                    window.skip(sums, state["step"], last_checkpoint)
                    continue
                state["step"] += 1
                window.add(sums, len(ids))
                if ema:
                    left = total_steps - state["step"] if config.ema_narrows else None
                    ema.update(accelerator.unwrap_model(model), left)
                profile.step()
                bar.update()

                done = state["step"] == total_steps
                ends_epoch = state["updates_in_epoch"] == len(updates)
                every = config.evaluate_every
                evaluates = not done and ends_epoch and every > 0 and (state["epoch"] + 1) % every == 0
                saves = done or (due(config.checkpointing_steps) if config.checkpointing_steps else evaluates)
                logs = done or due(config.log_every)
                stops = run.stop_requested(agree=logs)
                epoch = epochs_done(state)
                if logs or evaluates or saves or stops:
                    window.raise_if_diverged(state["step"], gradient_norm, last_checkpoint)
                if logs:
                    values = window.read() | {"train/gradient_norm": float(gradient_norm), "lr": lr}
                    run.log(values, state["step"], epoch)
                    speed = f"{values['train/images_per_second']:,.0f} images/s"
                    bar.set_postfix_str(f"loss {values['train/loss']:.3f}, lr {lr:.1e}, {speed}", refresh=False)
                window.stop()
                if evaluates:
                    metrics, _ = evaluate_test(epoch)
                    run.print(
                        f"epoch {epoch:g}: test accuracy {metrics['accuracy']:.2%}, loss {metrics['loss']:.3f}"
                    )
                    model.train()
                if saves or stops:
                    last_checkpoint = save()
                if stops:
                    run.exit_after_signal(last_checkpoint)
                if done:
                    break
                window.start()
            else:
                begin_next_epoch(state)

    # --- the last weights on the test split, without and with test-time augmentation
    run.release_signals()
    load_weights(evaluated, last_checkpoint)
    metrics, probabilities = evaluate_test(epochs_done(state))
    summary = {f"test/{name}": value for name, value in metrics.items()}
    if config.views != "one":
        with_views, _ = evaluate_test(epochs_done(state), config.views)
        summary |= {"test/accuracy_views": with_views["accuracy"], "views": config.views}
    if accelerator.is_main_process:
        plot_curves(
            run.metrics_path, run.figures_dir,
            {"loss": ["train/loss", "test/loss"], "accuracy": ["train/accuracy", "test/accuracy"], "lr": ["lr"],
             "throughput": ["train/images_per_second"]},
        )  # fmt: skip
        write_result_figures(run.figures_dir, splits.test.images, splits.test.labels, probabilities.cpu(),
                             splits.class_names)  # fmt: skip
        run.log_figures(sorted(run.figures_dir.glob("*.png")), state["step"])
    if config.compile:
        summary["compile_seconds"] = round(compile_seconds, 2)
    run.finish(summary, window.train_seconds, evaluated)
    run.print(
        f"test accuracy {metrics['accuracy']:.2%} on {metrics['n_images']:,} images, loss {metrics['loss']:.3f}"
    )
    if config.views != "one":
        run.print(f"test accuracy over the views of {config.views!r}: {with_views['accuracy']:.2%}")
    run.print(f"figures in {run.figures_dir}")


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
