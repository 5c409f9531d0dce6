"""Train a U-Net from scratch on Oxford-IIIT Pet, in four variants that can be compared.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_unet.py demo
    accelerate launch --config_file accelerate_configs/t4.yaml train_unet.py mp-tr-dice
    accelerate launch --config_file accelerate_configs/cpu_bf16.yaml train_unet.py all --data_dir oxford-iiit-pet
    accelerate launch --config_file accelerate_configs/t4.yaml train_unet.py mp-tr-dice --data_dir my_pictures

my_pictures: images/NAME.jpg with masks/NAME.png of two classes or more, or one of many like arrangements
(data/mask_layouts.py); classes.csv in it names the classes.

`all` trains the four variants one after another and compares them in comparison.md: with 300 pictures test Dice
0.902 to 0.912, over test-time views 0.914 to 0.923, 20 to 23 minutes each on two CPU cores (results/unet-*.json).

The pictures lie on the device as uint8 and are augmented there with their masks, a batch at a time. `test/dice`
is that of the last weights (or their moving average) over all pixels of the test split at the training size,
`test/dice_per_image` the mean of the pictures' own, `test/dice_views` with test-time augmentation.
"""

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, nn
from tyro.conf import Suppress

from data.augmentation import normalise
from data.epoch_order import plan_epoch
from data.errors import DataError
from data.joint_augmentation import JointAugmentation, JointAugmenter
from data.masked_folders import load_masked_folder
from data.masked_images import MaskSplits, picture_statistics, require_trainable, splits_of_trimaps
from data.pets import holds_pets, load_pets
from data.seeding import Stream, seed_global_generators
from data.textured_shapes import textured_shapes
from models.batch_norm import synchronize_batch_norm
from models.segmentation_losses import segmentation_loss
from models.segmentation_scores import dice_of_images, pixel_confusion, predict_masks, segmentation_scores
from models.unet import UNet
from models.views import PixelViews, pixel_logits_over_views
from training.checkpoints import check_files, find_checkpoint, load_checkpoint, load_weights, save_checkpoint
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
    Degrees,
    Epochs,
    GradientNorm,
    HalfShare,
    Halvings,
    ImageSide,
    LearningRate,
    MaskValue,
    Parts,
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
from training.segmentation_comparison import write_comparison
from training.segmentation_figures import keep_predictions, write_data_figures, write_result_figures


@dataclass(frozen=True)
class Config:
    recipe: Suppress[str]  # name of the recipe, for the run's folder and the tracker
    # --- data
    dataset: Literal["pet", "shapes"] = "pet"  # Oxford-IIIT Pet, or embedded textured shapes
    data_dir: PathFlag = ""  # own images/ and masks/, or Pet's images/ and annotations/ or two tarballs
    ignore_value: MaskValue = -1  # value in own masks that counts nothing; -1: 255 beside class numbers, or none
    image_size: ImageSide = 128  # side that pictures and masks are resized to, in pixels
    classes: Literal["binary", "trimap"] = "binary"  # of Pet: pet against background; or with its border
    border: Literal["pet", "background", "ignore"] = "pet"  # what Pet's border counts as in binary masks
    # --- augmentation, of picture and mask together
    flip: bool = True  # half of the pictures are mirrored
    scale: Share = 0.4  # the crop's sides are 1 / (1 + this) to 1 + this of the picture's
    aspect: Share = 0.2  # and the ratio of its sides likewise
    shift: HalfShare = 0.1  # its centre is moved by this share of the side at most
    rotation: Degrees = 20.0  # largest turn to either side, in degrees
    brightness: Share = 0.5  # brightness is multiplied by 1 +- this at most
    contrast: Share = 0.5  # contrast likewise
    saturation: Share = 1.0  # saturation likewise
    hue: Degrees = 0.0  # hues are turned by +- this at most, in degrees
    background_mix: Share = 0.5  # share of the pictures that show another's where both have class 0
    cutmix: Share = 0.25  # share of the pictures with a rectangle of another picture in them
    # --- batches
    batch_size: BatchSize = 16  # pictures of a micro-batch in one process
    gradient_accumulation_steps: Parts = 1  # micro-batches of a process in an update
    # --- model
    downsampling: Literal["maxpool", "strided"] = "maxpool"  # max-pooling, or convolution of stride 2
    upsampling: Literal["transposed", "bilinear"] = "transposed"  # transposed convolution, or bilinear and 3x3
    width: Width = 32  # channels of the first level; they double at each further one
    max_width: Count = 0  # most channels of a level; 0: no limit
    depth: Halvings = 4  # times that the resolution is halved
    norm: Literal["batch", "group", "instance", "none"] = "batch"  # normalisation after each convolution
    dropout: ShareBelowOne = 0.0  # share of the channels zeroed at the lowest resolution
    # --- optimization
    loss: Literal["bce", "dice", "bce+dice"] = "bce"  # cross-entropy with logits, soft Dice, or their sum
    epochs: Epochs = 90  # passes over the training pictures; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    half_size_share: Share = 0.55  # share of the updates, the first ones, on pictures of half the side
    optimizer: Literal["adamw", "muon"] = "muon"  # muon: for filters, Nesterov's sgd for the rest
    lr: LearningRate = 0.05  # peak of the one-cycle schedule
    pct_start: Share = 0.2  # share of the updates that the rate rises for
    bias_lr_factor: RateFactor = 4.0  # the rate of biases, norms and the last layer, as a multiple
    weight_decay: WeightDecay = 0.05  # of adamw, on filters; muon keeps them at a fixed norm
    max_grad_norm: GradientNorm = 0.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.99  # moving average of the weights, which is what is evaluated; 0: none
    seed: Seed = 0  # of the initial weights, the order of the pictures and their augmentation
    # --- evaluation
    evaluate_every: Count = 10  # epochs between evaluations on the test split; 0: only at the end
    views: PixelViews = "scales"  # views of a test picture for test/dice_views
    eval_batch_size: BatchSize = 64  # pictures evaluated at a time
    eval_only: bool = False  # only evaluate the newest checkpoint of --resume, or of --output_dir
    # --- run
    output_dir: PathFlag = ""  # where the run is written; default runs/unet/<recipe>
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
    epochs max_train_steps half_size_share lr pct_start bias_lr_factor weight_decay max_grad_norm ema_decay
    evaluate_every views eval_batch_size data_dir checkpointing_steps checkpoints_total_limit log_every compile
    """
)
MAKES_THE_RUN = flag_names(
    """
    recipe dataset ignore_value image_size classes border flip scale aspect shift rotation brightness contrast
    saturation hue background_mix cutmix downsampling upsampling width max_width depth norm dropout loss optimizer
    seed
    """
)

VARIANTS = {
    "mp-tr-bce": {"downsampling": "maxpool", "upsampling": "transposed", "loss": "bce"},
    "mp-tr-dice": {"downsampling": "maxpool", "upsampling": "transposed", "loss": "dice"},
    "strconv-tr-bce": {"downsampling": "strided", "upsampling": "transposed", "loss": "bce"},
    "strconv-ups-dice": {"downsampling": "strided", "upsampling": "bilinear", "loss": "dice"},
}

RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "textured shapes drawn by code; no download, a minute on two CPU cores",
        Config(
            recipe="demo", dataset="shapes", image_size=64, width=16, depth=3, loss="bce+dice", epochs=10,
            half_size_share=0, background_mix=0, cutmix=0, brightness=0.3, contrast=0.3, saturation=0.3,
            evaluate_every=1, log_every=10,
        ),
    ),
    "all": ("the four variants below, one after another, and their comparison", Config(recipe="all")),
    "mp-tr-bce": ("max-pooling, transposed convolutions, BCE", Config("mp-tr-bce", **VARIANTS["mp-tr-bce"])),
    "mp-tr-dice": ("max-pooling, transposed convolutions, Dice", Config("mp-tr-dice", **VARIANTS["mp-tr-dice"])),
    "strconv-tr-bce": ("strided, transposed filters, BCE", Config("strconv-tr-bce", **VARIANTS["strconv-tr-bce"])),
    "strconv-ups-dice": ("strided convolutions, bilinear upsampling, Dice",
                         Config("strconv-ups-dice", **VARIANTS["strconv-ups-dice"])),
}  # fmt: skip


def load_splits(config: Config) -> MaskSplits:
    if config.data_dir and not holds_pets(Path(config.data_dir)):
        if config.classes != "binary" or config.border != "pet":
            raise UsageError(
                "--classes and --border are of Pet's masks: leave them out, own masks have their classes"
            )
        return load_masked_folder(
            Path(config.data_dir),
            image_size=config.image_size,
            ignore_value=None if config.ignore_value < 0 else config.ignore_value,
        )
    if config.ignore_value >= 0:
        raise UsageError("--ignore_value is of own masks in --data_dir: leave it out, Pet has --border ignore")
    if config.dataset == "shapes" and not config.data_dir:
        train, test = textured_shapes(image_size=config.image_size)
    else:
        pets = load_pets(config.data_dir or None, image_size=config.image_size)
        train, test = pets.train, pets.test
    return splits_of_trimaps(train, test, config.classes, config.border)


def build_model(config: Config, n_classes: int) -> UNet:
    """The net: normalised pictures (B, 3, S, S) -> logits (B, 1, S, S) of two classes, (B, K, S, S) of K > 2."""
    try:
        return UNet(
            n_outputs=1 if n_classes == 2 else n_classes, width=config.width, depth=config.depth,
            max_width=config.max_width, downsampling=config.downsampling, upsampling=config.upsampling,
            norm=config.norm, dropout=config.dropout,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_optimizer(model: UNet, config: Config, mixed_precision: str) -> torch.optim.Optimizer:
    """Every parameter in one group: filters, and the rest (the last layer, biases, norms)."""
    filters = [p for p in model.parameters() if p.ndim > 1 and p is not model.head.weight]
    rest = [p for p in model.parameters() if p.ndim <= 1 or p is model.head.weight]
    groups = [{"params": filters}, {"params": rest, "weight_decay": 0.0, "lr_factor": config.bias_lr_factor}]
    if config.optimizer == "muon":
        groups[0] |= {"orthogonal": True, "momentum": 0.6, "keeps_norm": config.norm == "none"}
        products = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
        return Muon(groups, config.lr, momentum=0.9, dtype=products)
    fused = mixed_precision != "fp16"  # fused hides from Accelerate that fp16 skipped a step
    return torch.optim.AdamW(groups, config.lr, (0.9, 0.99), weight_decay=config.weight_decay, fused=fused)


def train_update(
    accelerator: Accelerator, model, optimizer, augmenter: JointAugmenter, ids: Tensor, config: Config, lr: float,
    size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One optimizer update on the pictures `ids` (B,), `size` pixels a side; this process takes its share of them.

    Returns its sum over pictures of the loss (1,), and the gradient norm.
    """
    set_lr(optimizer, lr)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    sums = torch.zeros(1, device=accelerator.device)
    for part in ids.tensor_split(n_parts)[accelerator.process_index :: accelerator.num_processes]:
        images, masks = augmenter.batch(part, size)
        with accelerator.accumulate(model):
            loss = segmentation_loss(model(images), masks, config.loss).sum()
            # The mean over the update's pictures: DDP and backward() divide by processes and accumulation steps.
            accelerator.backward(loss * (n_parts / len(ids)))
            if accelerator.sync_gradients:
                gradient_norm = accelerator.clip_grad_norm_(
                    model.parameters(),
                    config.max_grad_norm or math.inf,  # inf: only measure
                )
            optimizer.step()
            optimizer.zero_grad()
        sums += loss.detach()
    return sums, gradient_norm


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, images: Tensor, masks: Tensor, class_names: Sequence[str],
    mean: Tensor, std: Tensor, config: Config, views: PixelViews = "one",
) -> tuple[dict[str, float], Tensor, Tensor]:  # fmt: skip
    """Loss and scores over pictures (N, 3, S, S) uint8 with masks (N, S, S), whatever the batch size.

    Every process takes a share and all get the same answer: (metrics, predicted masks (N, S, S) uint8, Dice of
    each picture (N,)). `model` is a plain one, not the prepared.
    """
    model.eval()
    n, k = len(images), len(class_names)
    mine = torch.arange(accelerator.process_index, n, accelerator.num_processes, device=images.device)
    losses, predicted = torch.zeros(n, device=images.device), torch.zeros_like(masks)
    counts = torch.zeros(n, k, k, dtype=torch.int64, device=images.device)
    for ids in mine.split(config.eval_batch_size):
        with accelerator.autocast():
            logits = pixel_logits_over_views(model, normalise(images[ids], mean, std), views)
        losses[ids] = segmentation_loss(logits, masks[ids], config.loss)
        predicted[ids] = predict_masks(logits)
        counts[ids] = pixel_confusion(predicted[ids], masks[ids], k)
    # Each picture has one row, filled by one process: their sums hold each once.
    losses, predicted, counts = (sum_over_processes(accelerator, rows) for rows in (losses, predicted, counts))
    metrics = {"loss": float(losses.mean()), **segmentation_scores(counts, class_names), "n_images": n}
    return metrics, predicted, dice_of_images(counts)


def picture_size(config: Config, step: int, total_steps: int) -> int:
    """The side in pixels of the pictures of an update, of which `step` have gone before."""
    return config.image_size // (2 if step < config.half_size_share * total_steps else 1)


def find_lr(accelerator, model, optimizer, augmenter: JointAugmenter, config: Config, total_steps: int) -> None:
    """Range test over the run's first updates; prints the suggestion and writes figures/lr_range_test.png."""
    size = config.batch_size * accelerator.num_processes * config.gradient_accumulation_steps
    updates = itertools.chain.from_iterable(
        plan_epoch(augmenter.n_images, size, config.seed, epoch, accelerator.device) for epoch in itertools.count()
    )
    steps = itertools.count()

    def update_at(lr: float) -> Tensor:
        ids, size = next(updates), picture_size(config, next(steps), total_steps)
        sums, _ = train_update(accelerator, model, optimizer, augmenter, ids, config, lr, size)
        return sum_over_processes(accelerator, sums)[0] / len(ids)

    result = lr_range_test(update_at, accelerator=accelerator, model=model, optimizer=optimizer, max_lr=1.0)
    report_lr_range_test(accelerator, result, Path(config.output_dir))


def train_variants(output_dir: Path, config: Config) -> None:
    """The four variants in folders below `output_dir`, which finds their comparison; what is finished stays."""
    if config.resume not in ("", "latest"):
        raise UsageError(f"--resume {config.resume} is of one run: all takes --resume latest, or name a variant")
    folders = {name: output_dir / name for name in VARIANTS}
    for name, variant in VARIANTS.items():
        finished = (folders[name] / "summary.json").exists()
        if not (config.resume and finished) or config.eval_only:
            train(replace(config, recipe=name, output_dir=str(folders[name]), **variant))
    if PartialState().is_main_process and not config.find_lr:
        print(write_comparison(output_dir, folders))


def train(config: Config) -> None:
    """One run, from the data to summary.json."""
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "unet")
    accelerator = open_accelerator(config.gradient_accumulation_steps)
    own_folder(accelerator, config.output_dir)
    device = accelerator.device
    seed_global_generators(Stream.INITIAL_WEIGHTS, config.seed)

    # --- data and model, before anything is written
    with accelerator.local_main_process_first():  # the others find the decoded pictures in the cache
        splits = load_splits(config)
    n_train = len(splits.train)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    require_trainable(splits, n_parts)
    class_names = splits.class_names
    train_masks, test_masks = splits.train.masks, splits.test.masks
    train_images, test_images = splits.train.images.to(device), splits.test.images.to(device)
    statistics = picture_statistics(splits.train.images, train_masks, len(class_names))
    mean, std = (255 * statistics[name].to(device, torch.float32) for name in ("mean", "std"))
    augmentation = JointAugmentation(
        config.flip, config.scale, config.aspect, config.shift, config.rotation, config.brightness,
        config.contrast, config.saturation, config.hue, config.background_mix, config.cutmix,
    )  # fmt: skip
    augmenter = JointAugmenter(train_images, train_masks.to(device), augmentation, mean, std, config.seed)
    if 2**config.depth > config.image_size:
        most = config.image_size.bit_length() - 1
        raise UsageError(f"--depth {config.depth} halves {config.image_size} pixels below one: give at most {most}")
    model = build_within_memory(partial(build_model, config, len(class_names)), device)
    model = model.to(device, memory_format=torch.channels_last)
    update_size = config.batch_size * n_parts
    updates_per_epoch = math.ceil(n_train / update_size)
    # What a checkpoint keeps of the data: tools need it, and a resume must find the same.
    described = {"n_train": n_train, "image_size": config.image_size, "class_names": class_names,
                 "mean": mean.tolist(), "std": std.tolist()}  # fmt: skip
    if splits.mask_values:
        described["mask_values"] = splits.mask_values
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
    optimizer = build_optimizer(model, config, accelerator.mixed_precision)
    if config.compile:
        compile_model(model, device)
    model, optimizer = accelerator.prepare(model, optimizer)
    evaluated = ema.module if ema else accelerator.unwrap_model(model)
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0}
    window = MetricWindow(accelerator, ("train/loss",), rate="train/images_per_second")
    seed_global_generators(Stream.DROPOUT, config.seed, accelerator.process_index)
    if checkpoint:
        state = load_checkpoint(accelerator, model, checkpoint, ema, config.optimizer, config.resume_changes)
        window.load(state["window"])
    planned = EpochPlan(update_size, n_train, updates_per_epoch, config.seed)
    place_in_epoch(accelerator, config, state, planned, checkpoint, "pictures")
    total_steps = config.max_train_steps or config.epochs * updates_per_epoch + state["extra_steps"]
    if config.find_lr:
        return find_lr(accelerator, model, optimizer, augmenter, config, total_steps)

    run = Run(accelerator, "unet", config, checkpoint, state)
    run.print(
        f"{n_train:,} training and {len(test_images):,} test pictures of {config.image_size}x{config.image_size}; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{total_steps:,} updates, {updates_per_epoch} an epoch"
    )
    for note in splits.notes:
        run.print(note)
    if accelerator.is_main_process and not config.eval_only:
        augmented, augmented_masks = augmenter.preview(0, n_epochs=10)
        of_test = picture_statistics(splits.test.images, test_masks, len(class_names))
        write_data_figures(run.figures_dir, {"train": statistics, "test": of_test}, splits.train.images,
                           train_masks, class_names, augmented.cpu(), augmented_masks.cpu())  # fmt: skip
        write_model_summary(run.figures_dir / "model_summary.png", evaluated, augmented[:1])

    def save() -> Path:
        saved = {**state, **run.state(), "window": window.state(), "config": asdict(config)}
        return save_checkpoint(accelerator, model, run.output_dir, saved, ema=ema, files=data_file,
                               total_limit=config.checkpoints_total_limit)  # fmt: skip

    test_split = test_images, test_masks.to(device), class_names, mean, std

    def evaluate_test(epoch: float) -> tuple[dict[str, float], Tensor, Tensor]:
        metrics, predicted, dice = evaluate(accelerator, evaluated, *test_split, config)
        run.log({f"test/{name}": value for name, value in metrics.items()}, state["step"], epoch)
        if accelerator.is_main_process:
            keep_predictions(run.output_dir, state["step"], predicted.cpu())
        return metrics, predicted, dice

    def due(every: int) -> bool:
        return every > 0 and state["step"] % every == 0

    compile_seconds = 0.0
    done = config.eval_only or state["step"] >= total_steps
    if config.compile and not done:  # before the clock runs, and without a trace in weights or random numbers
        started = time.perf_counter()
        with preserved_state(accelerator, model, optimizer):
            for ids in plan_epoch(n_train, update_size, config.seed, 0, device)[:: max(updates_per_epoch - 1, 1)]:
                for size in (config.image_size // 2, config.image_size)[config.half_size_share == 0 :]:
                    train_update(accelerator, model, optimizer, augmenter, ids, config, 0.0, size)
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
                lr = one_cycle(state["step"], total_steps=total_steps, max_lr=config.lr, pct_start=config.pct_start)
                size = picture_size(config, state["step"], total_steps)
                sums, gradient_norm = train_update(accelerator, model, optimizer, augmenter, ids, config, lr, size)
                state["updates_in_epoch"] += 1
                if accelerator.optimizer_step_was_skipped:  # an fp16 overflow: not an update
                    window.skip(sums, state["step"], last_checkpoint)
                    continue
                state["step"] += 1
                window.add(sums, len(ids))
                if ema:
                    ema.update(accelerator.unwrap_model(model))
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
                    metrics, _, _ = evaluate_test(epoch)
                    run.print(f"epoch {epoch:g}: test Dice {metrics['dice']:.4f}, IoU {metrics['iou']:.4f}")
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

    # --- the last weights on the test split
    run.release_signals()
    load_weights(evaluated, last_checkpoint)
    metrics, predicted, dice = evaluate_test(epochs_done(state))
    if accelerator.is_main_process:
        plot_curves(
            run.metrics_path, run.figures_dir,
            {"loss": ["train/loss", "test/loss"], "scores": ["test/dice", "test/iou"], "lr": ["lr"],
             "throughput": ["train/images_per_second"]},
        )  # fmt: skip
        write_result_figures(run.output_dir, splits.test.images, test_masks, predicted.cpu(), dice.cpu(),
                             splits.test.names, class_names, updates_per_epoch)  # fmt: skip
        run.log_figures(sorted(run.figures_dir.glob("*.png")), state["step"])
    summary, with_views = {f"test/{name}": value for name, value in metrics.items()}, ""
    if config.views != "one":
        over_views, _, _ = evaluate(accelerator, evaluated, *test_split, config, config.views)
        summary |= {f"test/{name}_views": over_views[name] for name in ("dice", "iou")} | {"views": config.views}
        with_views = f"; Dice {over_views['dice']:.4f} over views ({config.views})"
    if config.compile:
        summary["compile_seconds"] = round(compile_seconds, 2)
    run.finish(summary, window.train_seconds, evaluated, close=False)
    run.print(
        f"test Dice {metrics['dice']:.4f}, IoU {metrics['iou']:.4f} over all pixels of {metrics['n_images']:,} "
        f"pictures; {metrics['dice_per_image']:.4f}, {metrics['iou_per_image']:.4f} as means of them{with_views}\n"
        f"figures in {run.figures_dir}"
    )


def main(config: Config) -> None:
    accelerator = open_accelerator(config.gradient_accumulation_steps)
    output_dir = Path(config.output_dir or f"runs/unet/{config.recipe}")
    own_folder(accelerator, output_dir)
    if config.recipe == "all":
        train_variants(output_dir, config)
    else:
        train(replace(config, output_dir=str(output_dir)))
    close_accelerator(accelerator)


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
