"""Train a label-conditional VAE on MNIST or CIFAR-10, and see what it draws under a wrong label.

    accelerate launch --config_file accelerate_configs/cpu.yaml train_cvae.py demo
    accelerate launch --config_file accelerate_configs/cpu_bf16.yaml train_cvae.py mnist --data_dir mnist
    accelerate launch --config_file accelerate_configs/bf16.yaml train_cvae.py cifar10 --compile

The data set lies on the device as uint8. All noise, of the latents and of the binarisation, depends on (seed,
epoch, update) alone and is drawn for the whole update: any number of processes makes the same one.

Bounds are of an image, in nats; `test/bits_per_dim` is the same as bits of one of its values. They hold for the
last weights (their moving average where there is one) on the whole test split. `test/wrong_label_hits` and
`test/prior_hits` are the shares of pictures that a classifier of real images (`--judge`) gives the label that was
asked for. On two CPU cores (results/cvae-*.json): mnist ELBO -85.2 nats, hits 99.3 % and 99.4 %, 13 minutes;
cifar10 4.339 bits/dim, hits 61.4 % and 67.2 % in pictures at a low temperature of the spatial latents, 31 minutes,
33 with the evaluation. 100 draws for its bound take a quarter of an hour: see --eval_only --iw_samples 100.
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
from tyro.conf import Suppress

from data.errors import DataError
from data.images.drawn_digits import drawn_digits
from data.images.epoch_order import plan_seeded_epoch
from data.images.labelled import ImageSplits, load_image_splits, require_trainable
from data.seeding import Stream, seed_global_generators, seeded_generator
from figures.curves import plot_curves
from figures.vae import plot_active_units, write_latent_map
from models.cvae import CVAE, drop_labels
from models.cvae_objective import Objective
from models.elbo import free_bits
from models.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedGaussian, LogisticMixture, bits_per_dim
from tools.judge import find_judge, label_hits
from tools.sample import write_pictures
from training.checkpoints import check_files, find_checkpoint, load_checkpoint, load_weights, save_checkpoint
from training.cli import PathFlag, run_script
from training.compilation import compile_model
from training.ema import EMA
from training.errors import UsageError
from training.latent_probe import active_units, probe_accuracy
from training.lr_finder import lr_range_test, preserved_state, report_lr_range_test
from training.metrics import MetricWindow
from training.model_size import build_within_memory
from training.profiling import profiler
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
    Seed,
    Share,
    ShareBelowOne,
    Temperature,
    Weight,
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
    dataset: str = "ylecun/mnist"  # data set on the hub, or "digits" (embedded)
    data_dir: PathFlag = ""  # IDX files, parquet or another layout of labelled images, instead of the hub
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
    n_blocks: Layers = 1  # residual blocks at each side
    patch_size: PatchSide = 1  # pixels along the side of a patch, folded into channels
    label_dim: Width = 32  # size of the label's embedding
    conditioning: Literal["film", "concat"] = "film"  # the label scales and shifts the norms, or is appended
    encoder_sees_label: bool = False  # the global latent is inferred under the label too
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
    picture_temperature: Temperature = 1.0  # of spatial latents in pictures for a label; 0: at their priors' means
    # --- optimization
    epochs: Epochs = 40  # passes over the training images; on a resume, another number stretches the schedule
    max_train_steps: Count = 0  # updates in all, instead of epochs, and likewise; 0: by epochs
    lr: LearningRate = 2e-3  # peak of the one-cycle schedule, for AdamW
    pct_start: Share = 0.1  # share of the updates that the rate rises for
    weight_decay: WeightDecay = 0.01  # on filters and matrices; none on biases and norms
    max_grad_norm: GradientNorm = 1.0  # gradients are clipped to this norm; 0: not at all
    ema_decay: ShareBelowOne = 0.999  # moving average of the weights, which is what is evaluated; 0: none
    seed: Seed = 0  # of the initial weights, the order of the images and all noise
    # --- evaluation
    evaluate_every: Count = 5  # epochs between evaluations on the test split; 0: only at the end
    eval_batch_size: BatchSize = 500  # images evaluated at a time
    iw_samples: Draws = 100  # draws of the importance-weighted bound at the end; 0: none
    judge: PathFlag = ""  # run of train_cifar.py that counts label hits; none: no hits; empty: one is trained once
    judge_epochs: Epochs = 2  # epochs of the one that is trained
    eval_only: bool = False  # only evaluate the newest checkpoint of --resume, or of --output_dir
    # --- run
    output_dir: PathFlag = ""  # where the run is written; default runs/cvae/<recipe>
    resume: PathFlag = ""  # "latest", a run folder or a checkpoint to go on from, with its run's own settings
    resume_changes: bool = False  # accept flags that make a resume another run; what they do to it is said
    checkpointing_steps: Count = 0  # updates between checkpoints; 0: one at each evaluation
    checkpoints_total_limit: Count = 2  # newest checkpoints that are kept; 0: all
    log_every: Count = 100  # updates between log lines
    find_lr: bool = False  # run a learning-rate range test, suggest a rate and end
    compile: bool = False  # torch.compile the model
    profile: bool = False  # profile a few updates: table and trace in <output_dir>/profile
    tracker: Literal["wandb", "none"] = "wandb"  # where metrics go besides metrics.jsonl


# On a resume the first may be given anew; the second would make it another run (training/resuming.py).
MAY_CHANGE = flag_names(
    """
    epochs max_train_steps lr pct_start weight_decay max_grad_norm ema_decay evaluate_every eval_batch_size
    iw_samples judge judge_epochs picture_temperature data_dir checkpointing_steps checkpoints_total_limit
    log_every compile
    """
)
MAKES_THE_RUN = flag_names(
    """
    recipe dataset image_size channels flip likelihood binarisation n_mixtures latent_dim spatial_latents width
    n_blocks patch_size label_dim conditioning encoder_sees_label narrow_posteriors label_dropout kl_weight
    kl_warmup free_bits probe_weight classifier_weight classifier_noise classifier_pooling seed
    """
)

RECIPES: dict[str, tuple[str, Config]] = {
    "demo": (
        "digits drawn by code; no download, three minutes on two CPU cores",
        Config(
            recipe="demo", dataset="digits", latent_dim=16, width=16, epochs=6, evaluate_every=1, log_every=10,
            classifier_weight=20, iw_samples=10, judge_epochs=4,
        ),
    ),
    "mnist": ("MNIST, dynamically binarised",
              Config(recipe="mnist", patch_size=2, spatial_latents=((14, 1),), classifier_weight=3, epochs=10,
                     lr=3e-3)),
    "cifar10": (
        "CIFAR-10 by a mixture of discretised logistics",
        Config(
            recipe="cifar10", dataset="uoft-cs/cifar10", image_size=32, channels=3, flip=True,
            likelihood="logistic_mixture", n_mixtures=3, batch_size=32, latent_dim=128, patch_size=2,
            spatial_latents=((8, 8), (16, 16)), width=48, narrow_posteriors=True, kl_warmup=0.8,
            free_bits=50, classifier_weight=100, classifier_noise=0.8, classifier_pooling=2,
            picture_temperature=0.3, epochs=7, evaluate_every=2, iw_samples=10, log_every=500, judge_epochs=10,
        ),
    ),
}  # fmt: skip


def build_model(config: Config, n_classes: int) -> Objective:
    """The CVAE with the likelihood of its outputs and the probe of its latent."""
    likelihood = {
        "bernoulli": Bernoulli, "continuous_bernoulli": ContinuousBernoulli,
        "logistic_mixture": partial(LogisticMixture, config.n_mixtures),
        "gaussian": partial(DiscretisedGaussian, config.channels),
    }[config.likelihood]()  # fmt: skip
    try:
        cvae = CVAE(
            n_classes, config.channels, config.image_size, likelihood.n_parameters(config.channels),
            latent_dim=config.latent_dim, spatial_latents=config.spatial_latents, width=config.width,
            n_blocks=config.n_blocks, patch_size=config.patch_size, label_dim=config.label_dim,
            conditioning=config.conditioning, encoder_sees_label=config.encoder_sees_label,
            narrow_posteriors=config.narrow_posteriors,
        )  # fmt: skip
        return Objective(
            cvae, likelihood, config.probe_weight, config.classifier_weight, config.classifier_noise,
            config.classifier_pooling, config.picture_temperature,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from error


def load_splits(config: Config) -> ImageSplits:
    if config.dataset == "digits" and not config.data_dir:
        return ImageSplits.of(*drawn_digits(image_size=config.image_size))
    size = {"image_size": config.image_size, "n_channels": config.channels}
    return load_image_splits(config.dataset, config.data_dir or None, **size)


def build_optimizer(model: nn.Module, config: Config, fp16: bool) -> torch.optim.Optimizer:
    """Every parameter in one group: filters and matrices, and vectors (biases, norms)."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused hides from Accelerate that fp16 skipped a step
    return torch.optim.AdamW(groups, config.lr, (0.9, 0.99), fused=not fp16)


def train_update(
    accelerator: Accelerator, model, optimizer, images: Tensor, labels: Tensor, ids: Tensor,
    generator: torch.Generator, config: Config, lr: float, kl_weight: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One optimizer update on the images `ids` (B,); this process takes its share of the micro-batches.

    Returns its sums over images of the objective, the reconstruction term and the KL (3,), in nats, and the
    gradient norm.
    """
    set_lr(optimizer, lr)
    plain = accelerator.unwrap_model(model)
    # Noise of the whole update, on every process: which images are its own depends on the number of processes.
    batch = images[ids]
    if config.flip:
        flipped = torch.rand(len(ids), generator=generator, device=ids.device) < 0.5
        batch = torch.where(flipped[:, None, None, None], batch.flip(-1), batch)
    targets = plain.likelihood.targets(batch, generator)
    uniforms = torch.rand(len(ids), generator=generator, device=ids.device)
    given = drop_labels(labels[ids], uniforms, config.label_dropout, plain.cvae.no_label)
    noise = torch.randn(len(ids), plain.n_noise, generator=generator, device=ids.device)
    n_parts, n_values = accelerator.num_processes * config.gradient_accumulation_steps, batch[0].numel()
    sums = torch.zeros(3, device=accelerator.device)
    whole_update = (targets, labels[ids], given, noise)
    parts = zip(*(whole.tensor_split(n_parts) for whole in whole_update), strict=True)
    for part in itertools.islice(parts, accelerator.process_index, None, accelerator.num_processes):
        with accelerator.accumulate(model):
            log_prob, output, label_loss = model(*part)
            objective = kl_weight * free_bits(output.kl, config.free_bits) - log_prob
            # The mean over all images of the update: DDP averages over processes and backward() divides by
            # the accumulation steps, so the sum is scaled up by both. In nats of a value, to suit fp16.
            accelerator.backward((objective + label_loss).sum() * (n_parts / len(ids) / n_values))
            if accelerator.sync_gradients:
                gradient_norm = accelerator.clip_grad_norm_(
                    model.parameters(),
                    config.max_grad_norm or math.inf,  # inf: only measure
                )
            optimizer.step()
            optimizer.zero_grad()
        sums += torch.stack([objective.detach().sum(), -log_prob.detach().sum(), output.kl.detach().sum()])
    return sums, gradient_norm


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: Objective, targets: Tensor, labels: Tensor, config: Config, iw_samples: int = 0
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Bounds on `targets` (N, C, S, S) with labels (N,), in nats of an image, by `iw_samples` draws or one.

    Every process takes a share of the batches and all get the same answer: (metrics, the latents drawn (N, D), the
    KL of each of their units (D,)). `model` is a plain one, not the prepared.
    """
    model.eval()
    n, cvae = len(targets), model.cvae
    rows = torch.zeros(n, 4 + 3 * cvae.latent_dim, device=targets.device)
    batches = torch.arange(n, device=targets.device).split(config.eval_batch_size)
    for i in range(accelerator.process_index, len(batches), accelerator.num_processes):
        ids, generator = batches[i], seeded_generator(targets.device, Stream.BOUND, config.seed, i)
        with accelerator.autocast():
            log_prob, output, bound = model.bounds(targets[ids], labels[ids], max(iw_samples, 1), generator)
        terms = torch.stack([-log_prob, output.kl.sum(1), bound, torch.ones_like(bound)], 1)
        rows[ids] = torch.cat([terms, output.kl_units, output.latent, output.latent_mean], 1)
    # Each image has one row, filled by one process: their sum holds each once.
    rows = sum_over_processes(accelerator, rows)
    if not bool((rows[:, 3] == 1).all()):
        raise RuntimeError("an image was evaluated more than once or never")
    reconstruction, kl, iw_bound = rows[:, :3].double().mean(0).tolist()
    kl_units, latents, latent_means = rows[:, 4:].split(cvae.latent_dim, 1)
    metrics = {
        "elbo": -(reconstruction + kl), "reconstruction": reconstruction, "kl": kl,
        "bits_per_dim": bits_per_dim(torch.tensor(reconstruction + kl), targets[0].numel()).item(),
        "active_units": active_units(latent_means.cpu()), "n_images": n,
    }  # fmt: skip
    if iw_samples:
        metrics |= {"iw_bound": iw_bound, "iw_samples": iw_samples}
    return metrics, latents.cpu(), kl_units.mean(0).cpu()


def warmed_kl_weight(config: Config, step: int, total_steps: int) -> float:
    """The weight of the KL in an update, of which `step` have gone before."""
    return config.kl_weight * min(1.0, (step + 1) / max(config.kl_warmup * total_steps, 1))


def find_lr(
    accelerator, model, optimizer, images: Tensor, labels: Tensor, plan, config: Config, total_steps: int
) -> None:
    """Range test over the run's first updates; prints the suggestion and writes figures/lr_range_test.png."""
    updates = itertools.chain.from_iterable(plan(epoch) for epoch in itertools.count())
    steps = itertools.count()

    def update_at(lr: float) -> Tensor:
        ids, generator = next(updates)
        weight = warmed_kl_weight(config, next(steps), total_steps)
        sums, _ = train_update(accelerator, model, optimizer, images, labels, ids, generator, config, lr, weight)
        return sum_over_processes(accelerator, sums)[0] / len(ids)

    result = lr_range_test(update_at, accelerator=accelerator, model=model, optimizer=optimizer, max_lr=1.0)
    report_lr_range_test(accelerator, result, Path(config.output_dir))
    close_accelerator(accelerator)


def main(config: Config) -> None:
    config = replace(config, output_dir=config.output_dir or f"runs/cvae/{config.recipe}")
    config = settings_of_run(config, RECIPES, MAY_CHANGE, "cvae")
    accelerator = open_accelerator(config.gradient_accumulation_steps)
    own_folder(accelerator, config.output_dir)
    device = accelerator.device
    seed_global_generators(Stream.INITIAL_WEIGHTS, config.seed)

    # --- data and model, before anything is written
    with accelerator.local_main_process_first():  # the others find the decoded images in the cache
        splits = load_splits(config)
    names, n_train = splits.class_names, len(splits.train)
    n_parts = accelerator.num_processes * config.gradient_accumulation_steps
    require_trainable(splits, n_parts)
    train_images, train_labels = splits.train.images.to(device), splits.train.labels.to(device)
    model = build_within_memory(partial(build_model, config, len(names)), device)
    model = model.to(device, memory_format=torch.channels_last)
    if config.likelihood == "bernoulli" and config.binarisation == "static":
        generator = seeded_generator(device, Stream.TRAINING_PIXELS, config.seed)
        train_images = 255 * model.likelihood.targets(train_images, generator).byte()
    test_images, test_labels = splits.test.images.to(device), splits.test.labels.to(device)
    generator = seeded_generator(device, Stream.TEST_PIXELS, config.seed)
    test_targets = model.likelihood.targets(test_images, generator)
    update_size = config.batch_size * n_parts
    plan = partial(plan_seeded_epoch, n_train, update_size, config.seed, device=device, stream=Stream.LATENT_NOISE)
    updates_per_epoch = math.ceil(n_train / update_size)
    # What a checkpoint keeps of the data: tools need it, and a resume must find the same.
    described = {"class_names": names, "n_train": n_train, "image_size": config.image_size,
                 "pixel_sum": int(splits.train.images.sum(dtype=torch.int64))}  # fmt: skip
    data_file = {"data.json": json.dumps(described, indent=1)}

    checkpoint = None
    if config.resume or config.eval_only:
        resume = config.resume or config.output_dir
        checkpoint = find_checkpoint(resume, Path(config.output_dir), prefer_best=config.eval_only)
    if checkpoint and not config.resume_changes:
        check_files(checkpoint, data_file)
    ema = EMA(model, config.ema_decay) if config.ema_decay > 0 else None
    optimizer = build_optimizer(model, config, fp16=accelerator.mixed_precision == "fp16")
    if config.compile:
        compile_model(model, device)
    model, optimizer = accelerator.prepare(model, optimizer)
    evaluated = ema.module if ema else accelerator.unwrap_model(model)
    state = {"step": 0, "epoch": 0, "updates_in_epoch": 0}
    terms = ("train/loss", "train/reconstruction", "train/kl")
    window = MetricWindow(accelerator, terms, rate="train/images_per_second")
    seed_global_generators(Stream.DROPOUT, config.seed, accelerator.process_index)
    if checkpoint:
        state = load_checkpoint(accelerator, model, checkpoint, ema)
        window.load(state["window"])
    planned = EpochPlan(update_size, n_train, updates_per_epoch, config.seed)
    place_in_epoch(accelerator, config, state, planned, checkpoint, "images")
    total_steps = config.max_train_steps or config.epochs * updates_per_epoch + state["extra_steps"]
    if config.find_lr:
        return find_lr(accelerator, model, optimizer, train_images, train_labels, plan, config, total_steps)
    judge = None
    if config.judge != "none":
        with accelerator.local_main_process_first():  # a judge that is missing is trained once
            judge = find_judge(config.judge, config.dataset, config.data_dir, splits, config.judge_epochs, device)

    run = Run(accelerator, "cvae", config, checkpoint, state)
    run.print(
        f"{n_train:,} training and {len(splits.test):,} test images of {len(names)} classes; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; "
        f"{total_steps:,} updates, {updates_per_epoch} an epoch"
    )

    def save() -> Path:
        saved = {**state, **run.state(), "window": window.state(), "config": asdict(config)}
        return save_checkpoint(accelerator, model, run.output_dir, saved, ema=ema, files=data_file,
                               total_limit=config.checkpoints_total_limit)  # fmt: skip

    def evaluate_test(epoch: float, iw_samples: int = 0) -> tuple[dict[str, float], Tensor, Tensor]:
        metrics, latents, kl_units = evaluate(accelerator, evaluated, test_targets, test_labels, config, iw_samples)
        run.log({f"test/{name}": value for name, value in metrics.items()}, state["step"], epoch)
        return metrics, latents, kl_units

    def due(every: int) -> bool:
        return every > 0 and state["step"] % every == 0

    update = partial(train_update, accelerator, model, optimizer, train_images, train_labels)
    compile_seconds = 0.0
    done = config.eval_only or state["step"] >= total_steps
    if config.compile and not done:  # before the clock runs, and without a trace in weights or random numbers
        started = time.perf_counter()
        with preserved_state(accelerator, model, optimizer):
            for ids, generator in plan(0)[:: max(updates_per_epoch - 1, 1)]:
                update(ids, generator, config, lr=0.0, kl_weight=1.0)
        compile_seconds = time.perf_counter() - started
    last_checkpoint = checkpoint
    bar = run.progress_bar(total_steps, state["step"])
    with bar, profiler(run.output_dir, accelerator, enabled=config.profile) as profile:
        window.start()
        while not done:
            updates = plan(state["epoch"], seen=state["seen_before"])
            state["updates_of_epoch"] = len(updates)
            for ids, generator in updates[state["updates_in_epoch"] :]:
                lr = one_cycle(state["step"], total_steps=total_steps, max_lr=config.lr, pct_start=config.pct_start)
                kl_weight = warmed_kl_weight(config, state["step"], total_steps)
                sums, gradient_norm = update(ids, generator, config, lr, kl_weight)
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
                    bar.set_postfix_str(f"loss {values['train/loss']:.2f}, lr {lr:.1e}, {speed}", refresh=False)
                window.stop()
                if evaluates:
                    metrics, _, _ = evaluate_test(epoch)
                    bounds = f"{metrics['elbo']:.2f} nats, {metrics['bits_per_dim']:.3f} bits/dim"
                    run.print(f"epoch {epoch:g}: test ELBO {bounds}")
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

    # --- the last weights on the test split: bounds, label hits, what the latent tells of the label, pictures
    run.release_signals()
    load_weights(evaluated, last_checkpoint)
    metrics, latents, kl_units = evaluate_test(epochs_done(state), config.iw_samples)
    hits = ""
    if judge:
        metrics |= label_hits(accelerator, evaluated, judge, test_images, test_targets, test_labels, config.seed)
        hits = (
            f"label hits {metrics['wrong_label_hits']:.1%} under a wrong label, {metrics['prior_hits']:.1%} from "
            f"the prior, by a classifier of {metrics['classifier_accuracy']:.2%}\n"
        )
    half, of_test = len(latents) // 2, splits.test.labels  # the probe learns from a half, is asked about the other
    probed = probe_accuracy(latents[:half], of_test[:half], latents[half:], of_test[half:], len(names), seed=0)
    summary = {f"test/{name}": value for name, value in metrics.items()}
    summary |= {f"test/probe_{name}": value for name, value in probed.items()}
    if accelerator.is_main_process:
        plot_curves(
            run.metrics_path, run.figures_dir,
            {"loss": ["train/loss"], "elbo": ["test/elbo"], "terms": list(terms[1:]), "lr": ["lr"],
             "throughput": ["train/images_per_second"]},
        )  # fmt: skip
        write_pictures(run.figures_dir, evaluated, test_images, test_targets, test_labels, names, config.seed)
        write_latent_map(run.figures_dir / "latent_map.png", latents, splits.test.labels, names)
        plot_active_units(run.figures_dir / "active_units.png", kl_units)
        run.log_figures(sorted(run.figures_dir.glob("*.png")), state["step"])
    if config.compile:
        summary["compile_seconds"] = round(compile_seconds, 2)
    run.finish(summary, window.train_seconds, evaluated)
    run.print(
        f"test ELBO {metrics['elbo']:.2f} nats, {metrics['bits_per_dim']:.3f} bits/dim: reconstruction "
        f"{metrics['reconstruction']:.2f}, KL {metrics['kl']:.2f}, {metrics['active_units']} active units\n"
        f"{hits}figures in {run.figures_dir}"
    )


if __name__ == "__main__":
    run_script(main, RECIPES, __doc__, user_errors=(DataError,))
