"""Train a label-conditional VAE on MNIST or CIFAR-10, and see what it draws under a wrong label.

    accelerate launch -q --config_file accelerate_configs/cpu.yaml train_cvae.py demo
    accelerate launch -q --config_file accelerate_configs/cpu_bf16.yaml train_cvae.py mnist --data_dir mnist
    accelerate launch -q --config_file accelerate_configs/bf16.yaml train_cvae.py cifar10 --compile

The data set lies on the device as uint8, where that has room. All noise, of the latents and of the binarisation,
depends on (seed, update) alone and is drawn for the whole update: any number of processes makes the same one.

Bounds are of an image, in nats; `bits_per_dim` is the same as bits of one of its values. `valid/elbo` is that of
training images that are held out, and chooses the checkpoint that is tested (the last one where none are).
`test/...` are of its weights, or of their moving average, on the whole test split. `test/wrong_label_hits` and
`test/prior_hits` are the shares of pictures that a classifier of real images (`--judge`) gives the label that was
asked for. On two CPU cores (results/cvae-*.json): mnist ELBO -85.2 nats, hits 99.3 % and 99.4 %, 13 minutes;
cifar10 4.339 bits/dim, hits 61.4 % and 67.2 % in pictures at a low temperature of the spatial latents, 31 minutes,
33 with the evaluation; these runs trained on all training images. 100 draws for its bound take a quarter of an
hour: see --eval_only --iw_samples 100.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

import train_cifar
from data.errors import DataError
from data.images.drawn_digits import drawn_digits
from data.images.epoch_order import plan_epoch
from data.images.labelled import ImageSplits, LabelledImages, load_image_splits, require_trainable
from data.seeding import Stream, seed_micro_batch, seeded_generator
from figures.curves import plot_curves
from figures.lr_range_test import report_lr_range_test
from figures.vae import plot_active_units, write_latent_map, write_pictures
from models.cvae import CVAE, CVAEOutput, drop_labels
from models.elbo import free_bits
from models.generative_model import GenerativeModel
from models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretisedGaussian,
    Likelihood,
    LogisticMixture,
    bits_per_dim,
)
from training.checkpoints import load_weights
from training.cli import PathFlag, refuse_options_of_other_models, run_script
from training.errors import UsageError
from training.evaluation import row_of_each_example
from training.finished_run import open_run
from training.gradients import clip_gradients, skips_update
from training.judge import Judge, label_hits, train_judge
from training.latent_probe import active_units, probe_accuracy
from training.loop import Loop
from training.lr_finder import find_lr
from training.metrics import better_by, prefixed
from training.model_size import build_within_memory
from training.precision import fused
from training.processes import local_main_process_first
from training.ranges import (
    BatchSize,
    Components,
    Count,
    Draws,
    Epochs,
    GradientNorm,
    ImageSide,
    Layers,
    LearningRate,
    Parts,
    PatchSide,
    PositiveInt,
    RateDivisor,
    Seed,
    Share,
    ShareBelowOne,
    Temperature,
    Weight,
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
    dataset: str = "ylecun/mnist"  # data set on the hub, or "digits" (embedded)
    data_dir: PathFlag = ""  # IDX files, parquet or another layout of labelled images, instead of the hub
    valid_fraction: ShareBelowOne = 0.02  # share of the training images held out to validate on; 0: none
    image_size: ImageSide = 28  # side that images of another size are resized and cropped to, in pixels
    channels: Literal[1, 3] = 1  # grey or colour
    flip: bool = False  # mirror half of the training images
    # --- likelihood
    likelihood: Literal["bernoulli", "continuous_bernoulli", "logistic_mixture", "gaussian"] = (
        "bernoulli"  # of pixels
    )
    binarisation: Literal["dynamic", "static"] = "dynamic"  # for bernoulli: drawn anew in each update, or once
    n_mixtures: Components = 5  # components of logistic_mixture
    # --- batches
    batch_size: BatchSize = 128  # images of a micro-batch in one process
    gradient_accumulation_steps: Parts = 1  # micro-batches of a process in an update
    # --- model
    latent_dim: Width = 32  # units of the global latent
    spatial_latents: tuple[tuple[PatchSide, Width], ...] = ()  # further: (side of the map, channels), coarse first
    width: Width = 32  # channels of the finest maps; twice and four times as many at half and a quarter of the side
    fine_width: Count = 0  # channels of the finest maps alone; 0: width
    n_blocks: Layers = 1  # residual blocks at each side
    patch_size: PatchSide = 1  # pixels along the side of a patch, folded into channels
    label_dim: Width = 32  # size of the label's embedding
    conditioning: Literal["film", "concat"] = "film"  # the label scales and shifts the norms, or is appended
    encoder_sees_label: bool = False  # the global latent is inferred under the label too
    sigma: Literal["exp", "softplus"] = (
        "exp"  # what makes latents' standard deviations: softplus has small gradients
    )
    narrow_posteriors: bool = False  # spatial latents tell of the image from the start; goes with --kl_warmup
    label_dropout: Share = 0.0  # share of the labels that are withheld in training
    # --- objective
    kl_weight: Weight = 1.0  # of the KL in the objective; the reported bounds always have 1
    kl_warmup: Share = 0.0  # share of the updates in which that weight rises from 0
    free_bits: Weight = 0.0  # nats of each level of latents, in an image, that cost nothing
    probe_weight: Weight = 0.0  # of a probe that reads the label from the latent, against which the encoder learns
    classifier_weight: Weight = 0.0  # of a classifier that is to see the label in pictures under a wrong one
    classifier_noise: Weight = 0.0  # up to this share of the contrast of photographs, on all that it is shown
    classifier_pooling: PatchSide = 1  # pixels along the side of the squares that it sees averaged
    classifier_every: PositiveInt = 1  # it is shown one image in so many, which saves time
    picture_temperature: Temperature = 1.0  # of spatial latents in pictures for a label; 0: at their priors' means
    # --- optimization
    epochs: Epochs = 40  # passes over the training images; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    optimizer: Literal["adamw", "adamax"] = "adamw"  # adamax: Adam by the largest gradients, not their mean square
    lr: LearningRate = 2e-3  # peak of the one-cycle schedule
    pct_start: Share = 0.1  # share of the updates that the rate rises for
    div_factor: RateDivisor = 25.0  # the rate begins at its peak divided by this
    final_div_factor: RateDivisor = 1e4  # it ends at where it began divided by this; both 1: a constant rate
    three_phase: bool = False  # from the peak it first falls, as long as it rose, to where it began
    anneal: Literal["cos", "linear"] = "cos"  # form of the rise and the fall
    weight_decay: WeightDecay = 0.01  # AdamW's, on filters and matrices; none on biases and norms
    max_grad_norm: GradientNorm = 1.0  # gradients are clipped to this norm; 0: not at all
    skip_gradient_norm: GradientNorm = (
        0.0  # left out are updates beyond this norm, once the rate has risen; 0: none
    )
    ema_decay: ShareBelowOne = 0.999  # moving average of the weights, which is what is evaluated; 0: none
    seed: Seed = 0  # of the initial weights, the order of the images and all noise
    # --- evaluation
    evaluate_every: Count = 5  # epochs between evaluations of the validation split; 0: only at the end
    patience: Count = 0  # end after so many evaluations without a better ELBO; 0: never
    eval_batch_size: BatchSize = 500  # images evaluated at a time
    iw_samples: Draws = 100  # draws of the importance-weighted bound at the end; 0: none
    judge: PathFlag = ""  # run of train_cifar.py that counts label hits; none: no hits; empty: one is trained once
    judge_epochs: Epochs = 2  # epochs of the one that is trained


# On a resume these may be given anew; another of the others would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps lr pct_start div_factor final_div_factor three_phase anneal weight_decay max_grad_norm
    skip_gradient_norm ema_decay evaluate_every patience eval_batch_size iw_samples judge judge_epochs
    picture_temperature data_dir checkpointing_steps checkpoints_total_limit log_every compile deterministic
    """
)

# A VAE as a course had it: the label's one-hot goes through an embedding, which is appended in encoder and decoder.
PLAIN_VAE: dict[str, Any] = {
    "conditioning": "concat",
    "encoder_sees_label": True,
    "lr": 1e-3,
    "div_factor": 1.0,
    "final_div_factor": 1.0,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "ema_decay": 0.0,
}

RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "digits drawn by code; no download, under two minutes on two CPU cores",
        Config(
            recipe="demo",
            dataset="digits",
            batch_size=32,
            latent_dim=8,
            width=16,
            patch_size=2,
            classifier_weight=20,
            classifier_pooling=2,
            epochs=8,
            lr=4e-3,
            evaluate_every=1,
            iw_samples=10,
            judge_epochs=2,
            log_every=25,
        ),
    ),
    "mnist": (
        "MNIST, dynamically binarised",
        Config(
            recipe="mnist",
            spatial_latents=((14, 1),),
            patch_size=2,
            classifier_weight=3,
            epochs=10,
            lr=3e-3,
            log_every=100,
        ),
    ),
    "mnist-course": (
        "MNIST by a plain VAE: the label's embedding is appended, and nothing else",
        Config(
            recipe="mnist-course",
            **PLAIN_VAE,
            epochs=10,
            log_every=100,
        ),
    ),
    "cifar10-course": (
        "CIFAR-10 likewise, by a Gaussian",
        Config(
            recipe="cifar10-course",
            **PLAIN_VAE,
            dataset="uoft-cs/cifar10",
            image_size=32,
            channels=3,
            likelihood="gaussian",
            epochs=10,
            log_every=100,
        ),
    ),
    "cifar10": (
        "CIFAR-10 by a mixture of discretised logistics",
        Config(
            recipe="cifar10",
            dataset="uoft-cs/cifar10",
            image_size=32,
            channels=3,
            flip=True,
            likelihood="logistic_mixture",
            n_mixtures=3,
            batch_size=32,
            latent_dim=128,
            spatial_latents=((8, 8), (16, 16)),
            width=48,
            patch_size=2,
            narrow_posteriors=True,
            kl_warmup=0.8,
            free_bits=50,
            classifier_weight=100,
            classifier_noise=0.8,
            classifier_pooling=2,
            picture_temperature=0.3,
            epochs=7,
            evaluate_every=2,
            iw_samples=10,
            judge_epochs=10,
            log_every=500,
        ),
    ),
}


def load_splits(config: Config) -> ImageSplits:
    """Training, validation and test images, on the CPU."""
    if config.dataset == "digits" and not config.data_dir:
        if config.channels != 1:
            raise UsageError("--dataset digits are grey: add --channels 1")
        splits = ImageSplits.of(*drawn_digits(image_size=config.image_size))
    else:
        splits = load_image_splits(
            config.dataset, config.data_dir or None, image_size=config.image_size, n_channels=config.channels
        )
    return splits.with_validation(config.valid_fraction)


def find_judge(config: Config, splits: ImageSplits, device: torch.device) -> Judge | None:
    """The classifier that counts label hits, trained once where none is named. `splits` are on the CPU."""
    if config.judge == "none":
        return None
    run = config.judge or train_judge(splits, config.dataset, config.data_dir, config.judge_epochs)
    classifier = open_run(run, "cifar", train_cifar.Config)
    return Judge(classifier, train_cifar.build_model, splits.class_names, device)


def build_model(config: Config, n_classes: int) -> GenerativeModel:
    """The CVAE with the likelihood of its outputs, and the probe and the classifier that make it heed the label."""
    likelihoods: dict[str, Callable[[], Likelihood]] = {
        "bernoulli": Bernoulli,
        "continuous_bernoulli": ContinuousBernoulli,
        "logistic_mixture": partial(LogisticMixture, config.n_mixtures),
        "gaussian": partial(DiscretisedGaussian, config.channels),
    }
    likelihood = likelihoods[config.likelihood]()
    try:
        cvae = CVAE(
            n_classes,
            config.channels,
            config.image_size,
            likelihood.n_parameters(config.channels),
            latent_dim=config.latent_dim,
            spatial_latents=config.spatial_latents,
            width=config.width,
            fine_width=config.fine_width,
            n_blocks=config.n_blocks,
            patch_size=config.patch_size,
            label_dim=config.label_dim,
            conditioning=config.conditioning,
            encoder_sees_label=config.encoder_sees_label,
            narrow_posteriors=config.narrow_posteriors,
            sigma=config.sigma,
        )
        return GenerativeModel(
            cvae,
            likelihood,
            probe_weight=config.probe_weight,
            classifier_weight=config.classifier_weight,
            classifier_noise=config.classifier_noise,
            classifier_pooling=config.classifier_pooling,
            classifier_every=config.classifier_every,
            picture_temperature=config.picture_temperature,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def build_optimizer(model: nn.Module, config: Config, mixed_precision: str) -> Optimizer:
    """Every parameter in one group: filters and matrices, and vectors (biases, norms)."""
    if config.optimizer == "adamax":
        # Its weight decay is not AdamW's: it would be added to the gradients, which are smaller, and outweigh them.
        return torch.optim.Adamax(model.parameters(), config.lr)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, betas=(0.9, 0.99), fused=fused(mixed_precision))


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


def kl_weight(config: Config, step: int, total_steps: int) -> float:
    """The weight of the KL in update `step`, counted from 0."""
    n_warmup = max(config.kl_warmup * total_steps, 1)
    return config.kl_weight * min(1.0, (step + 1) / n_warmup)


def objective(
    log_prob: Tensor, output: CVAEOutput, label_loss: Tensor, config: Config, weight: float
) -> dict[str, Tensor]:
    """What is trained on and what is logged beside it, as sums over the images, in nats.

    log_prob (B,) of the images; output.kl (B, L) of each level of latents, `weight` that of the KL; label_loss (B,)
    of the probe and the classifier. Trained on are "loss", the bound as it is weighted, and "label_loss".
    """
    loss = weight * free_bits(output.kl, config.free_bits) - log_prob
    sums = {
        "loss": loss.sum(),
        "reconstruction": -log_prob.sum(),
        "kl": output.kl.sum(),
        "label_loss": label_loss.sum(),
    }
    n_levels = output.kl.shape[1]
    if n_levels > 1:
        sums |= {f"kl_level_{level}": output.kl[:, level].sum() for level in range(n_levels)}
    return sums


def draw_batch(
    model: GenerativeModel, data: LabelledImages, config: Config, ids: Tensor, step: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the images `ids` (B,) are to the model in update `step`: its targets, labels, labels given, and noise.

    Drawn for the whole update, on every process: which images are its own depends on the number of processes.
    """
    generator = seeded_generator(ids.device, Stream.LATENT_NOISE, config.seed, step)
    images, labels = data.images[ids], data.labels[ids]
    if config.flip:
        flipped = torch.rand(len(ids), generator=generator, device=ids.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
    targets = model.likelihood.targets(images, generator)
    uniforms = torch.rand(len(ids), generator=generator, device=ids.device)
    given = drop_labels(labels, uniforms, config.label_dropout, model.cvae.no_label)
    noise = torch.randn(len(ids), model.n_noise, generator=generator, device=ids.device)
    return targets, labels, given, noise


def train_update(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Optimizer,
    data: LabelledImages,
    config: Config,
    total_steps: int,
    ids: Tensor,
    step: int,
    lr: float,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update `step` of `total_steps`, on the images `ids` (B,); this process takes its share of the micro-batches.

    Returns this process's sums of the objective, by name, and the gradient norm.
    """
    model.train()
    set_lr(optimizer, lr)
    batch = draw_batch(accelerator.unwrap_model(model), data, config, ids, step)
    weight = kl_weight(config, step, total_steps)
    n_values = math.prod(data.images.shape[1:])
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    micro_batches = list(zip(*(whole.tensor_split(n_parts) for whole in batch), strict=True))
    sums: dict[str, Tensor] = {}
    skipped = False
    for part in range(accelerator.process_index, n_parts, accelerator.num_processes):
        seed_micro_batch(config.seed, step, part)
        with accelerator.accumulate(model):
            log_prob, output, label_loss = model(*micro_batches[part])
            terms = objective(log_prob, output, label_loss, config, weight)
            # The mean over all images of the update: DDP averages over processes and backward() divides by
            # the accumulation steps, so the sum is scaled up by both. In nats of a value, to suit fp16.
            scale = n_parts / len(ids) / n_values
            accelerator.backward((terms["loss"] + terms["label_loss"]) * scale)
            if accelerator.sync_gradients:
                gradient_norm = clip_gradients(accelerator, model, config.max_grad_norm)
                # The first gradients are large: who leaves them out stays where they are.
                limit = config.skip_gradient_norm if step >= config.pct_start * total_steps else 0.0
                skipped = skips_update(accelerator, gradient_norm, limit)
            if not skipped:
                optimizer.step()
            optimizer.zero_grad()
        add_to(sums, terms)
    if config.skip_gradient_norm:  # logged as a share of the updates
        sums["skipped"] = torch.tensor(skipped * len(ids) / accelerator.num_processes, device=ids.device)
    return sums, gradient_norm


def draw_targets(model: GenerativeModel, images: Tensor, config: Config, stream: Stream) -> Tensor:
    """What the likelihood is of, drawn once for images (N, C, S, S) uint8: binarised pixels, or all 256 values."""
    return model.likelihood.targets(images, seeded_generator(images.device, stream, config.seed))


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: GenerativeModel,
    targets: Tensor,
    labels: Tensor,
    config: Config,
    iw_samples: int = 0,
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Bounds on `targets` (N, C, S, S) with labels (N,), in nats of an image, by `iw_samples` draws or one.

    Every process takes a share and all get the same answer: (metrics, the latents drawn (N, D), the KL of each of
    their units (D,)), on the CPU. `model` is a bare one, not the prepared.
    """
    model.eval()

    def bounds_of(ids: Tensor) -> tuple[Tensor, ...]:
        batch = int(ids[0]) // config.eval_batch_size  # waits for the device
        generator = seeded_generator(targets.device, Stream.BOUND, config.seed, batch)
        with accelerator.autocast():
            log_prob, output, bound = model.bounds(targets[ids], labels[ids], max(iw_samples, 1), generator)
        return -log_prob, output.kl, bound, output.kl_units, output.latent, output.latent_mean

    reconstructions, kls, bounds, kl_units, latents, latent_means = row_of_each_example(
        accelerator, len(targets), config.eval_batch_size, bounds_of
    )
    reconstruction = float(reconstructions.double().mean())
    kl = float(kls.sum(1).double().mean())
    metrics = {
        "elbo": -(reconstruction + kl),
        "reconstruction": reconstruction,
        "kl": kl,
        "bits_per_dim": bits_per_dim(torch.tensor(reconstruction + kl), targets[0].numel()).item(),
        "active_units": active_units(latent_means.cpu()),
        "n_images": len(targets),
    }
    if iw_samples:
        metrics |= {"iw_bound": float(bounds.double().mean()), "iw_samples": iw_samples}
    return metrics, latents.cpu(), kl_units.mean(0).cpu()


def draw_curves(run: Run, loop: Loop, model: GenerativeModel) -> None:
    """Write the figures of what was logged, on the main process."""
    panels = {
        "loss": ["train/loss"],
        "elbo": ["valid/elbo"],
        "terms": ["train/reconstruction", "train/kl"],
        "kl_levels": [f"train/kl_level_{level}" for level in range(model.cvae.n_levels)],
        "lr": ["lr"],
        "throughput": [loop.rate_name],
    }
    if run.accelerator.is_main_process:
        plot_curves(run.metrics_path, run.figures_dir, panels)


def report_test(run: Run, loop: Loop, model: GenerativeModel, splits: ImageSplits, judge: Judge | None) -> None:
    """Evaluate the chosen weights on the test split; end the run.

    Bounds, label hits, what the latent tells of the label, pictures. Of the validation split the hits alone.
    """
    accelerator, config, test, valid = run.accelerator, run.config, splits.test, splits.valid
    run.release_signals()
    load_weights(model, loop.checkpoint_to_test)
    summary = loop.summary()
    if judge and valid:
        targets = draw_targets(model, valid.images, config, Stream.VALIDATION_PIXELS)
        hits = label_hits(accelerator, model, judge, valid.images, targets, valid.labels, config.seed)
        summary |= prefixed("valid", hits)
    if not config.final_test:
        draw_curves(run, loop, model)
        return run.finish_untested(summary, loop.train_seconds, model, step=loop.step)
    targets = draw_targets(model, test.images, config, Stream.TEST_PIXELS)
    metrics, latents, kl_units = evaluate(accelerator, model, targets, test.labels, config, config.iw_samples)
    run.log(prefixed("test", metrics), loop.step, loop.epochs_done)
    report = (
        f"test ELBO {metrics['elbo']:.2f} nats, {metrics['bits_per_dim']:.3f} bits/dim: reconstruction "
        f"{metrics['reconstruction']:.2f}, KL {metrics['kl']:.2f}, {metrics['active_units']} active units"
    )
    if judge:
        metrics |= label_hits(accelerator, model, judge, test.images, targets, test.labels, config.seed)
        report += (
            f"\nlabel hits {metrics['wrong_label_hits']:.1%} under a wrong label, {metrics['prior_hits']:.1%} from "
            f"the prior, by a classifier of {metrics['classifier_accuracy']:.2%}"
        )
    half = len(latents) // 2  # the probe learns from a half and is asked about the other
    labels = test.labels.cpu()
    n_classes = len(splits.class_names)
    probed = probe_accuracy(latents[:half], labels[:half], latents[half:], labels[half:], n_classes, seed=0)
    draw_curves(run, loop, model)
    if accelerator.is_main_process:
        write_figures(run, loop, model, splits, targets, latents, kl_units)
    summary |= prefixed("test", metrics)
    summary |= {f"test/probe_{name}": share for name, share in probed.items()}
    run.finish(summary, loop.train_seconds, model)
    run.print(f"{report}\nfigures in {run.figures_dir}")


def write_figures(
    run: Run,
    loop: Loop,
    model: GenerativeModel,
    splits: ImageSplits,
    targets: Tensor,
    latents: Tensor,
    kl_units: Tensor,
) -> None:
    """Write figures/*.png: pictures of test images with `targets`, and what `evaluate` gave."""
    folder, test, names = run.figures_dir, splits.test, splits.class_names
    write_pictures(folder, model, test.images, targets, test.labels, names, run.config.seed)
    write_latent_map(folder / "latent_map.png", latents, test.labels.cpu(), names)
    plot_active_units(folder / "active_units.png", kl_units)
    run.log_figures(sorted(folder.glob("*.png")), loop.step)


def main(config: Config) -> None:
    old_rules = {"valid_fraction": 0.0}  # runs of before there was one held out nothing
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "cvae", old_rules)
    refuse_options_of_other_models(config, RECIPES, {"adamw": ("weight_decay",)}, choice="optimizer")
    accelerator = begin_run(config)
    device = accelerator.device
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    update_size = config.batch_size * n_parts

    # --- data, before anything is written
    with local_main_process_first(accelerator):  # the others find the decoded images in the cache
        splits = load_splits(config)
    require_trainable(splits, n_parts)
    # What a checkpoint keeps of the data: tools need it, and a resume must find the same.
    described = {
        "class_names": splits.class_names,
        "n_train": len(splits.train),
        "image_size": config.image_size,
        "pixel_sum": int(splits.train.images.sum(dtype=torch.int64)),
    }
    files = {"data.json": json.dumps(described, indent=1)}
    epoch_plan = EpochPlan(update_size, len(splits.train), math.ceil(len(splits.train) / update_size), config.seed)

    # --- model and optimizer, new or from a checkpoint
    model = build_within_memory(partial(build_model, config, len(splits.class_names)), device)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    checkpoint = checkpoint_to_resume(config, files)
    model, optimizer, ema, state = prepare_training(accelerator, model, build_optimizer, config, checkpoint)
    evaluated = weights_to_evaluate(accelerator, model, ema)
    total_steps = place_in_epoch(accelerator, config, state, epoch_plan, checkpoint, "images")

    # --- images on the device where that has room, binarised where that is done once
    once = config.likelihood == "bernoulli" and config.binarisation == "static"
    on_device = splits.to(device) if once else splits.near(device, whole_evaluation=True)
    train, valid = on_device.train, on_device.valid
    if once:
        pixels = draw_targets(evaluated, train.images, config, Stream.TRAINING_PIXELS)
        train = replace(train, images=255 * pixels.byte())
    if valid:
        valid_targets = draw_targets(evaluated, valid.images, config, Stream.VALIDATION_PIXELS)

    def plan(epoch: int, seen: int = 0) -> Sequence[Tensor]:
        return train.ahead(plan_epoch(len(train), update_size, config.seed, epoch, device, seen))

    update = partial(train_update, accelerator, model, optimizer, train, config, total_steps)
    if config.find_lr:
        result = find_lr(accelerator, model, optimizer, plan(0), update, count=len)
        report_lr_range_test(accelerator, result, Path(config.output_dir))
        return close_accelerator(accelerator)
    with local_main_process_first(accelerator):  # a judge that is missing is trained once
        judge = find_judge(config, splits, device)

    # --- the loop: each round looks at what is due, then trains on one update
    run = Run(accelerator, "cvae", config, checkpoint, state)
    run.print(
        f"{len(train):,} training, {len(valid or ()):,} validation and {len(splits.test):,} test images of "
        f"{len(splits.class_names)} classes; {sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{total_steps:,} updates, {epoch_plan.n_updates:,} an epoch"
    )
    for note in on_device.notes:
        run.print(note)
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
            metrics, *_ = evaluate(accelerator, evaluated, valid_targets, valid.labels, config)
            bounds = f"{metrics['elbo']:.2f} nats, {metrics['bits_per_dim']:.3f} bits/dim"
            run.print(f"epoch {loop.epochs_done:g}: validation ELBO {bounds}")
            loop.log_validation(metrics, better_by("elbo"))
        if loop.due("save"):
            loop.save()
        if loop.last:
            break
        lr = learning_rate(config, loop.step, total_steps)
        sums, gradient_norm = update(ids, loop.step, lr)
        if loop.count(sums, len(ids), gradient_norm, lr) and ema:
            ema.update(accelerator.unwrap_model(model))

    report_test(run, loop, evaluated, on_device, judge)


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
