"""Train a U-Net from scratch on Oxford-IIIT Pet, in four variants that can be compared.

    accelerate launch -q --config_file accelerate_configs/cpu.yaml train_unet.py demo
    accelerate launch -q --config_file accelerate_configs/t4.yaml train_unet.py mp-tr-dice
    accelerate launch -q --config_file accelerate_configs/cpu_bf16.yaml train_unet.py all --data_dir oxford-iiit-pet
    accelerate launch -q --config_file accelerate_configs/t4.yaml train_unet.py mp-tr-dice --data_dir my_pictures

my_pictures: images/NAME.jpg with masks/NAME.png of two classes or more, or one of many like arrangements
(data/images/mask_layouts.py); classes.csv in it names the classes.

`all` trains the four variants one after another and compares them in comparison.md: with 300 pictures test Dice
0.902 to 0.911, over test-time views 0.914 to 0.922, 17 to 23 minutes each on one or two CPU cores
(results/unet-*.json). These runs trained on all training pictures and tested their last weights.

The pictures lie on the device as uint8, where that has room, and are augmented there with their masks. `valid/dice`
is that of training pictures that are held out, and chooses the checkpoint that is tested (the last one where none
are). `test/dice` is that of its weights, or of their moving average, over all pixels of the test split at the
training size, `test/dice_per_image` the mean of the pictures' own, `test/dice_views` with test-time augmentation.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from data.errors import DataError
from data.images.epoch_order import plan_epoch
from data.images.joint_augmentation import JointAugmentation, JointAugmenter
from data.images.masked import (
    MaskSplit,
    MaskSplits,
    picture_statistics,
    require_trainable,
    splits_of_trimaps,
)
from data.images.masked_folders import load_masked_folder
from data.images.pets import holds_pets, load_pets
from data.images.pixels import normalise
from data.images.textured_shapes import textured_shapes
from data.seeding import seed_micro_batch
from figures.curves import plot_curves
from figures.lr_range_test import report_lr_range_test
from figures.model_summary import write_model_summary
from figures.segmentation import keep_predictions, write_data_figures, write_overlays, write_result_figures
from figures.segmentation_comparison import write_comparison
from models.segmentation_losses import loss_of_levels, segmentation_loss
from models.segmentation_scores import dice_of_images, pixel_confusion, predict_masks, segmentation_scores
from models.test_time_augmentation import PixelViews, pixel_logits_over_views
from models.unet import UNet
from training.checkpoints import load_weights
from training.cli import PathFlag, run_script
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
    Degrees,
    Epochs,
    GradientNorm,
    HalfShare,
    Halvings,
    ImageSide,
    Layers,
    LearningRate,
    MaskValue,
    Parts,
    RateDivisor,
    RateFactor,
    Seed,
    Share,
    ShareBelowOne,
    WeightDecay,
    Width,
)
from training.resuming import EpochPlan, checkpoint_to_resume, flag_names, place_in_epoch, settings_of_run
from training.run import Run, RunConfig, begin_run, close_accelerator, open_accelerator, own_folder
from training.schedules import one_cycle, set_lr
from training.setup import prepare_training, weights_to_evaluate
from training.sums import add_to


@dataclass(frozen=True)
class Config(RunConfig):
    # --- data
    dataset: Literal["pet", "shapes"] = "pet"  # Oxford-IIIT Pet, or embedded textured shapes
    data_dir: PathFlag = ""  # own images/ and masks/, or Pet's images/ and annotations/ or two tarballs
    ignore_value: MaskValue = -1  # value in own masks that counts nothing; -1: 255 beside class numbers, or none
    valid_fraction: ShareBelowOne = 0.1  # share of the training pictures held out to validate on; 0: none
    image_size: ImageSide = 128  # side that pictures and masks are resized to, in pixels
    classes: Literal["binary", "trimap"] = "binary"  # of Pet: pet against background; or with its border
    border: Literal["pet", "background", "ignore"] = "pet"  # what Pet's border counts as in binary masks
    unseen_breeds: tuple[str, ...] = ()  # of Pet: left out of the training, and the only ones that are tested
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
    gamma: Share = 0.0  # values from 0 to 1 are raised to a power of 1 / (1 + this) to 1 + this
    low_resolution: Share = 0.0  # share of the pictures that are shown as from half to all of their pixels
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
    encoder: Literal["plain", "residual"] = "plain"  # residual: with a way around every two convolutions
    encoder_blocks: Layers = 1  # blocks of two convolutions at each level of the encoder
    deep_supervision: Share = 0.0  # coarser levels predict too, each at this share of the finer's weight; 0: none
    # --- optimization
    loss: Literal["bce", "dice", "bce+dice"] = "bce"  # cross-entropy with logits, soft Dice, or their sum
    epochs: Epochs = 90  # passes over the training pictures; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    half_size_share: Share = 0.55  # share of the updates, the first ones, on pictures of half the side
    three_quarter_size_share: Share = 0.0  # and of those that follow, on three quarters of it
    optimizer: Literal["adamw", "muon"] = "muon"  # muon: for filters, Nesterov's sgd for the rest
    lr: LearningRate = 0.05  # peak of the one-cycle schedule
    pct_start: Share = 0.2  # share of the updates that the rate rises for
    div_factor: RateDivisor = 25.0  # the rate begins at its peak divided by this
    final_div_factor: RateDivisor = 1e4  # it ends at where it began divided by this; both 1: a constant rate
    three_phase: bool = False  # from the peak it first falls, as long as it rose, to where it began
    anneal: Literal["cos", "linear"] = "cos"  # form of the rise and the fall
    bias_lr_factor: RateFactor = 4.0  # the rate of biases, norms and the last layer, as a multiple
    weight_decay: WeightDecay = 0.05  # of adamw, on filters; muon keeps them at a fixed norm
    max_grad_norm: GradientNorm = 0.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.99  # moving average of the weights, which is what is evaluated; 0: none
    seed: Seed = 0  # of the initial weights, the order of the pictures and their augmentation
    # --- evaluation
    evaluate_every: Count = 10  # epochs between evaluations of the validation split; 0: only at the end
    patience: Count = 0  # end after so many evaluations without a better Dice; 0: never
    views: PixelViews = "scales"  # views of a test picture for test/dice_views
    eval_batch_size: BatchSize = 64  # pictures evaluated at a time


# On a resume these may be given anew; another of the others would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps half_size_share three_quarter_size_share lr pct_start div_factor final_div_factor
    three_phase anneal bias_lr_factor weight_decay max_grad_norm ema_decay evaluate_every patience views
    eval_batch_size data_dir checkpointing_steps checkpoints_total_limit log_every compile deterministic
    """
)

VARIANTS: dict[str, dict[str, Any]] = {
    "mp-tr-bce": {"downsampling": "maxpool", "upsampling": "transposed", "loss": "bce"},
    "mp-tr-dice": {"downsampling": "maxpool", "upsampling": "transposed", "loss": "dice"},
    "strconv-tr-bce": {"downsampling": "strided", "upsampling": "transposed", "loss": "bce"},
    "strconv-ups-dice": {"downsampling": "strided", "upsampling": "bilinear", "loss": "dice"},
}

# The loop that a course compared them in: pictures as they are, Adam at one rate, the last weights.
PLAIN_LOOP: dict[str, Any] = {
    "flip": False,
    "scale": 0.0,
    "aspect": 0.0,
    "shift": 0.0,
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "background_mix": 0.0,
    "cutmix": 0.0,
    "half_size_share": 0.0,
    "optimizer": "adamw",
    "weight_decay": 0.0,
    "lr": 1e-3,
    "div_factor": 1.0,
    "final_div_factor": 1.0,
    "bias_lr_factor": 1.0,
    "ema_decay": 0.0,
    "views": "one",
    "epochs": 30,
}

RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "textured shapes drawn by code; no download, a minute on two CPU cores",
        Config(
            recipe="demo",
            dataset="shapes",
            image_size=64,
            background_mix=0,
            cutmix=0,
            brightness=0.3,
            contrast=0.3,
            saturation=0.3,
            width=16,
            depth=3,
            loss="bce+dice",
            epochs=10,
            half_size_share=0,
            evaluate_every=1,
            log_every=10,
        ),
    ),
    "all": (
        "the four variants below, one after another, and their comparison",
        Config(recipe="all"),
    ),
    "mp-tr-bce": (
        "max-pooling, transposed convolutions, BCE",
        Config(recipe="mp-tr-bce", **VARIANTS["mp-tr-bce"]),
    ),
    "mp-tr-dice": (
        "max-pooling, transposed convolutions, Dice",
        Config(recipe="mp-tr-dice", **VARIANTS["mp-tr-dice"]),
    ),
    "strconv-tr-bce": (
        "strided convolutions, transposed ones for upsampling, BCE",
        Config(recipe="strconv-tr-bce", **VARIANTS["strconv-tr-bce"]),
    ),
    "strconv-ups-dice": (
        "strided convolutions, bilinear upsampling, Dice",
        Config(recipe="strconv-ups-dice", **VARIANTS["strconv-ups-dice"]),
    ),
    **{
        f"{name}-course": (
            f"{name} in a plain loop, as a course had it",
            Config(recipe=f"{name}-course", **variant, **PLAIN_LOOP),
        )
        for name, variant in VARIANTS.items()
    },
}


def load_splits(config: Config) -> MaskSplits:
    """Training, validation and test pictures with their masks, on the CPU."""
    return read_splits(config).with_validation(config.valid_fraction)


def read_splits(config: Config) -> MaskSplits:
    """The pictures and masks of --data_dir, of the cache or of code, before any are held out."""
    if config.data_dir and not holds_pets(Path(config.data_dir)):
        if config.classes != "binary" or config.border != "pet" or config.unseen_breeds:
            raise UsageError(
                "--classes, --border and --unseen_breeds are of Pet's pictures: leave them out, own masks have "
                "their classes"
            )
        return load_masked_folder(
            Path(config.data_dir),
            image_size=config.image_size,
            ignore_value=None if config.ignore_value < 0 else config.ignore_value,
        )
    if config.ignore_value >= 0:
        raise UsageError("--ignore_value is of own masks in --data_dir: leave it out, Pet has --border ignore")
    if config.dataset == "shapes" and not config.data_dir:
        if config.unseen_breeds:
            raise UsageError("--unseen_breeds is of Pet's pictures: leave it out, --dataset shapes has none")
        train, test = textured_shapes(image_size=config.image_size)
    else:
        pets = load_pets(config.data_dir or None, image_size=config.image_size)
        if config.unseen_breeds:
            pets = pets.with_unseen(config.unseen_breeds)
        train, test = pets.train, pets.test
    return splits_of_trimaps(train, test, config.classes, config.border)


def build_augmenter(config: Config, split: MaskSplit, mean: Tensor, std: Tensor) -> JointAugmenter:
    """What augments pictures and masks of a split together, and normalises the pictures, on their device."""
    augmentation = JointAugmentation(
        flip=config.flip,
        scale=config.scale,
        aspect=config.aspect,
        shift=config.shift,
        rotation=config.rotation,
        brightness=config.brightness,
        contrast=config.contrast,
        saturation=config.saturation,
        hue=config.hue,
        gamma=config.gamma,
        low_resolution=config.low_resolution,
        background_mix=config.background_mix,
        cutmix=config.cutmix,
    )
    return JointAugmenter(split.images, split.masks, augmentation, mean, std, config.seed)


def build_model(config: Config, n_classes: int) -> UNet:
    """The net: normalised pictures (B, 3, S, S) -> logits (B, 1, S, S) of two classes, (B, K, S, S) of K > 2."""
    if 2**config.depth > config.image_size:
        most = config.image_size.bit_length() - 1
        raise UsageError(f"--depth {config.depth} halves {config.image_size} pixels below one: give at most {most}")
    try:
        return UNet(
            n_outputs=1 if n_classes == 2 else n_classes,
            width=config.width,
            depth=config.depth,
            max_width=config.max_width,
            downsampling=config.downsampling,
            upsampling=config.upsampling,
            norm=config.norm,
            dropout=config.dropout,
            encoder=config.encoder,
            encoder_blocks=config.encoder_blocks,
            deep_supervision=config.deep_supervision > 0,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_optimizer(model: UNet, config: Config, mixed_precision: str) -> Optimizer:
    """Every parameter in one group: filters, and the rest (the last layer, biases, norms)."""
    # Of layers whose outputs are logits: Muon would turn them too fast.
    heads = {head.weight for head in (model.head, *model.level_heads)}
    filters = [p for p in model.parameters() if p.ndim > 1 and p not in heads]
    rest = [p for p in model.parameters() if p.ndim <= 1 or p in heads]
    groups: list[dict[str, Any]] = [
        {"params": filters},
        {"params": rest, "weight_decay": 0.0, "lr_factor": config.bias_lr_factor},
    ]
    if config.optimizer == "muon":
        groups[0] |= {"orthogonal": True, "momentum": 0.6, "keeps_norm": config.norm == "none"}
        return Muon(groups, config.lr, momentum=0.9, dtype=product_dtype(mixed_precision))
    return torch.optim.AdamW(
        groups, config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=fused(mixed_precision)
    )


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


def picture_size(config: Config, step: int, total_steps: int) -> int:
    """The side in pixels of the pictures of update `step`, counted from 0."""
    if step < config.half_size_share * total_steps:
        return config.image_size // 2
    if step < (config.half_size_share + config.three_quarter_size_share) * total_steps:
        return 3 * config.image_size // 4
    return config.image_size


def objective(logits: Tensor, masks: Tensor, config: Config) -> dict[str, Tensor]:
    """What is trained on ("loss") and what is logged beside it, as sums over the pictures.

    logits (B, 1, S, S) of two classes, (B, K, S, S) of K > 2; masks (B, S, S) of class numbers, or IGNORE. Under
    deep supervision the logits are those of L levels, (L, B, K, S, S).
    """
    if config.deep_supervision:
        losses = loss_of_levels(logits, masks, config.loss, config.deep_supervision)
    else:
        losses = segmentation_loss(logits, masks, config.loss)
    return {"loss": losses.sum()}


def train_update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    augmenter: JointAugmenter,
    config: Config,
    total_steps: int,
    ids: Tensor,
    step: int,
    lr: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update `step`, on the pictures `ids` (B,); this process takes its share of the micro-batches.

    Returns this process's sums of the objective, by name, and the gradient norm.
    """
    model.train()
    set_lr(optimizer, lr)
    size = picture_size(config, step, total_steps)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    micro_batches = ids.tensor_split(n_parts)
    sums: dict[str, Tensor] = {}
    for part in range(accelerator.process_index, n_parts, accelerator.num_processes):
        seed_micro_batch(config.seed, step, part)
        images, masks = augmenter.batch(micro_batches[part], size)
        with accelerator.accumulate(model):
            terms = objective(model(images), masks, config)
            # The mean over all pictures of the update: DDP averages over processes and backward() divides by
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
    split: MaskSplit,
    class_names: Sequence[str],
    mean: Tensor,
    std: Tensor,
    config: Config,
    views: PixelViews = "one",
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Loss and scores over a split's N pictures, which lie on the device, whatever the batch size.

    Every process takes a share and all get the same answer: (metrics, predicted masks (N, S, S) uint8, Dice of
    each picture (N,)). `model` is a bare one, not the prepared.
    """
    model.eval()

    def results_of(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        masks = split.masks[ids]
        with accelerator.autocast():
            logits = pixel_logits_over_views(model, normalise(split.images[ids], mean, std), views)
        predicted = predict_masks(logits)
        losses = segmentation_loss(logits, masks, config.loss)
        return losses, predicted, pixel_confusion(predicted, masks, len(class_names))

    losses, predicted, counts = row_of_each_example(accelerator, len(split), config.eval_batch_size, results_of)
    metrics = {
        "loss": float(losses.mean()),
        **segmentation_scores(counts, class_names),
        "n_images": len(split),
    }
    return metrics, predicted, dice_of_images(counts)


def draw_data_and_model(
    run: Run,
    train: MaskSplit,
    class_names: Sequence[str],
    statistics: dict[str, dict[str, Tensor]],
    augmenter: JointAugmenter,
    model: nn.Module,
) -> None:
    """Figures of what the run begins with. The augmenter's epoch is then another."""
    images, masks = augmenter.preview(image_id=0, n_epochs=10)
    write_data_figures(
        run.figures_dir,
        statistics,
        train.images.cpu(),
        train.masks.cpu(),
        class_names,
        augmented_images=images.cpu(),
        augmented_masks=masks.cpu(),
    )
    write_model_summary(run.figures_dir / "model_summary.png", model, images[:1])


def draw_curves(run: Run, loop: Loop) -> None:
    """Write the figures of what was logged, on the main process."""
    panels = {"loss": ["train/loss", "valid/loss"], "scores": ["valid/dice", "valid/iou"]}
    if run.accelerator.is_main_process:
        plot_curves(run.metrics_path, run.figures_dir, panels | {"lr": ["lr"], "throughput": [loop.rate_name]})


def report_test(
    run: Run, loop: Loop, model: nn.Module, splits: MaskSplits, mean: Tensor, std: Tensor, n_updates: int
) -> None:
    """Score the chosen weights on the test split, without and with test-time augmentation; end the run.

    An epoch has `n_updates`, for the figures. The processes stay joined.
    """
    accelerator, config, class_names = run.accelerator, run.config, splits.class_names
    run.release_signals()
    load_weights(model, loop.checkpoint_to_test)
    if not config.final_test:
        draw_curves(run, loop)
        return run.finish_untested(loop.summary(), loop.train_seconds, model, step=loop.step, close=False)
    metrics, predicted, dice = evaluate(accelerator, model, splits.test, class_names, mean, std, config)
    run.log(prefixed("test", metrics), loop.step, loop.epochs_done)
    summary = {**loop.summary(), **prefixed("test", metrics)}
    run.print(
        f"test Dice {metrics['dice']:.4f}, IoU {metrics['iou']:.4f} over all pixels of {metrics['n_images']:,} "
        f"pictures; {metrics['dice_per_image']:.4f}, {metrics['iou_per_image']:.4f} as means of them"
    )
    if config.views != "one":
        with_views, _, _ = evaluate(accelerator, model, splits.test, class_names, mean, std, config, config.views)
        summary |= {f"test/{name}_views": with_views[name] for name in ("dice", "iou")}
        summary["views"] = config.views
        run.print(f"test Dice {with_views['dice']:.4f} over the views of {config.views!r}")
    draw_curves(run, loop)
    if accelerator.is_main_process:
        splits, predicted = splits.to(torch.device("cpu")), predicted.cpu()
        test, followed = splits.test, splits.valid
        if followed is None:  # only the end is there to be shown, of test pictures
            keep_predictions(run.output_dir, loop.step, predicted)
            followed = test
        name = "test" if followed is test else "validation"
        write_overlays(run.output_dir, followed.images, followed.masks, n_updates, name)
        write_result_figures(
            run.output_dir, test.images, test.masks, predicted, dice.cpu(), test.names, class_names
        )
        run.log_figures(sorted(run.figures_dir.glob("*.png")), loop.step)
    run.finish(summary, loop.train_seconds, model, close=False)
    run.print(f"figures in {run.figures_dir}")


def train_variants(config: Config) -> Accelerator:
    """The four variants one after another, in folders of one that finds their comparison; what is finished stays.

    Returns an accelerator whose processes are still joined.
    """
    if config.resume not in ("", "latest"):
        raise UsageError(f"--resume {config.resume} is of one run: all takes --resume latest, or name a variant")
    output_dir = Path(config.output_dir or "runs/unet/all")
    accelerator = open_accelerator(config.gradient_accumulation_steps, config.deterministic)
    own_folder(accelerator, output_dir)
    folders = {name: output_dir / name for name in VARIANTS}
    for name, variant in VARIANTS.items():
        finished = (folders[name] / "summary.json").exists()
        if not (config.resume and finished) or config.eval_only:
            train_one(replace(config, recipe=name, output_dir=str(folders[name]), **variant))
    if accelerator.is_main_process and not config.find_lr:
        print(write_comparison(output_dir, folders))
    return accelerator


def train_one(config: Config) -> Accelerator:
    """One run, from the data to summary.json. Returns its accelerator, whose processes are still joined."""
    old_rules = {"valid_fraction": 0.0}  # runs of before there was one held out nothing
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "unet", old_rules)
    accelerator = begin_run(config)
    device = accelerator.device
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    own_parts = range(accelerator.process_index, n_parts, accelerator.num_processes)
    update_size = config.batch_size * n_parts

    # --- data, on the device where that has room
    with local_main_process_first(accelerator):  # the others find the decoded pictures in the cache
        splits = load_splits(config)
    require_trainable(splits, n_parts)
    class_names, n_classes = splits.class_names, len(splits.class_names)
    statistics = {
        "train": picture_statistics(splits.train, n_classes),
        "test": picture_statistics(splits.test, n_classes),
    }
    mean, std = (255 * statistics["train"][name].to(device, torch.float32) for name in ("mean", "std"))
    splits = splits.near(device)
    train, valid = splits.train, splits.valid
    augmenter = build_augmenter(config, train, mean, std)
    # What a checkpoint keeps of the data: tools need it, and a resume must find the same.
    described = {"n_train": len(train), "image_size": config.image_size, "class_names": class_names}
    described |= {"mean": mean.tolist(), "std": std.tolist()}
    if splits.mask_values:
        described["mask_values"] = splits.mask_values
    files = {"data.json": json.dumps(described, indent=1)}

    def plan(epoch: int, seen: int = 0) -> Sequence[Tensor]:
        augmenter.draw(epoch)
        updates = plan_epoch(len(train), update_size, config.seed, epoch, device, seen)
        return augmenter.ahead(updates, own_parts, n_parts)

    # --- model and optimizer, new or from a checkpoint
    model = build_within_memory(partial(build_model, config, n_classes), device)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    checkpoint = checkpoint_to_resume(config, files)
    model, optimizer, ema, state = prepare_training(accelerator, model, build_optimizer, config, checkpoint)
    evaluated = weights_to_evaluate(accelerator, model, ema)
    epoch_plan = EpochPlan(update_size, len(train), math.ceil(len(train) / update_size), config.seed)
    total_steps = place_in_epoch(accelerator, config, state, epoch_plan, checkpoint, "pictures")
    update = partial(train_update, accelerator, model, optimizer, augmenter, config, total_steps)
    if config.find_lr:
        result = find_lr(accelerator, model, optimizer, plan(0), update, count=len, max_lr=1.0)
        report_lr_range_test(accelerator, result, Path(config.output_dir))
        return accelerator

    # --- the loop: each round looks at what is due, then trains on one update
    run = Run(accelerator, "unet", config, checkpoint, state)
    run.print(
        f"{len(train):,} training, {len(valid or ()):,} validation and {len(splits.test):,} test pictures of "
        f"{config.image_size}x{config.image_size}; {sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{total_steps:,} updates, {epoch_plan.n_updates:,} an epoch"
    )
    for note in splits.notes:
        run.print(note)
    if accelerator.is_main_process and not config.eval_only:
        draw_data_and_model(run, train, class_names, statistics, augmenter, evaluated)
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
            metrics, predicted, _ = evaluate(accelerator, evaluated, valid, class_names, mean, std, config)
            run.print(
                f"epoch {loop.epochs_done:g}: validation Dice {metrics['dice']:.4f}, IoU {metrics['iou']:.4f}"
            )
            if accelerator.is_main_process:
                keep_predictions(run.output_dir, loop.step, predicted.cpu())
            loop.log_validation(metrics, better_by("dice", "loss"))
        if loop.due("save"):
            loop.save()
        if loop.last:
            break
        lr = learning_rate(config, loop.step, total_steps)
        sums, gradient_norm = update(ids, loop.step, lr)
        if loop.count(sums, len(ids), gradient_norm, lr) and ema:
            ema.update(accelerator.unwrap_model(model))

    report_test(run, loop, evaluated, splits, mean, std, epoch_plan.n_updates)
    return accelerator


def main(config: Config) -> None:
    accelerator = train_variants(config) if config.recipe == "all" else train_one(config)
    close_accelerator(accelerator)


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
