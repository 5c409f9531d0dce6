"""Which settings the image scripts learn best with, by their validation splits, and what each costs.

    python -m benchmarks.picture_settings --task unet --data DIR --minutes 30 --jobs 4 --output unet.jsonl
    python -m benchmarks.picture_settings --task cifar --data DIR --recipes speedrun --seeds 3 --minutes 60 \
        --precision bf16 --output speedrun.jsonl

Every setting of a recipe is a run of its own (benchmarks/settings_trials.py), which leaves the test split unread;
the same command goes on where the time ended. DIR holds oxford-iiit-pet, cifar10 and mnist; without it the runs are
on what code draws. A table gives the validation's score, the seconds of training here, and the work that does not
depend on the machine: the floating-point operations of the net in the whole run, for each training image. What an
optimizer multiplies is not counted.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tabulate import tabulate
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.settings_trials import Precision, Trial, over_seeds, run_trials, scores
from data.errors import DataError
from models.generative_model import GenerativeModel
from models.hard_examples import HardExamples
from training.cli import PathFlag, call_with_config, parse_config, run_tool
from training.errors import UsageError
from training.ranges import PositiveInt, Weight

N_COUNTED = 20  # images of a batch whose operations are counted: its shares are whole numbers of them

NNUNET = "--gamma 0.5 --low_resolution 0.25 --deep_supervision 0.5"
RESIDUAL = "--encoder residual --encoder_blocks 2"
UNET = {
    "baseline": "",
    "deep supervision": "--deep_supervision 0.5",
    "gamma": "--gamma 0.5",
    "low resolution": "--low_resolution 0.25",
    "residual encoder": "--encoder residual",
    "residual encoder, 2 blocks": RESIDUAL,
    "sides of 1/2, 3/4, 1": "--half_size_share 0.4 --three_quarter_size_share 0.3",
    "192 pixels late": "--image_size 192 --half_size_share 0.45 --three_quarter_size_share 0.35",
    "hue 20": "--hue 20",
    "background mix 0.7": "--background_mix 0.7",
    "dropout 0.2": "--dropout 0.2",
    "width 48": "--width 48",
    "depth 5": "--depth 5 --max_width 512",
    "cutmix 0.5": "--cutmix 0.5",
    "scale 0.6, rotation 30": "--scale 0.6 --rotation 30",
    "lr 0.03": "--lr 0.03",
    "lr 0.08": "--lr 0.08",
    "150 epochs": "--epochs 150",
    "gamma, low resolution, deep supervision": NNUNET,
    "those with the residual encoder": f"{NNUNET} {RESIDUAL}",
    "those with 150 epochs": f"{NNUNET} {RESIDUAL} --epochs 150",
    "those with 256 pixels": f"{NNUNET} {RESIDUAL} --image_size 256",
}
LOOKAHEAD = "--lookahead 5 --ema_decay 0.95"
COLOURS = "--brightness 0.14 --contrast 0.13"
RESNET = {
    "baseline": "",
    "label smoothing 0.2": "--label_smoothing 0.2",
    "whitened": "--whitened",
    "gelu": "--activation gelu",
    "whitened, gelu": "--whitened --activation gelu",
    "lookahead": LOOKAHEAD,
    "brightness, contrast": COLOURS,
    "cutout 8": "--cutout 8",
    "cutout 16": "--cutout 16",
    "batches of 250": "--batch_size 250",
    "lr 0.07": "--lr 0.07",
    "lr 0.14": "--lr 0.14",
    "biases at 16 times": "--bias_lr_factor 16",
    "average 0.998": "--ema_decay 0.998 --no_ema_narrows",
    "lookahead, filters' momentum 0.75": f"{LOOKAHEAD} --filter_momentum 0.75",
    "lookahead, lr 0.065": f"{LOOKAHEAD} --lr 0.065 --bias_lr_factor 6 --head_lr_factor 6",
    "whitened, gelu, smoothing 0.2": "--whitened --activation gelu --label_smoothing 0.2",
    "those with brightness, contrast": f"--whitened --activation gelu --label_smoothing 0.2 {COLOURS}",
    "those with batches of 250": "--whitened --activation gelu --label_smoothing 0.2 --batch_size 250",
}
ULTIMUS = {
    "baseline": "",
    "label smoothing 0.1": "--label_smoothing 0.1",
    "not mirrored": "--flip none --views one",
    "alternating mirror": "--flip alternating",
    "batches of 25": "--batch_size 25 --ema_decay 0.999",
    "batches of 100": "--batch_size 100 --ema_decay 0.996",
    "lr 0.003": "--lr 0.003",
    "lr 0.006": "--lr 0.006",
    "lr 0.006, brightness, contrast": f"--lr 0.006 {COLOURS}",
    "lr 0.015": "--lr 0.015",
    "average 0.9995": "--ema_decay 0.9995",
    "average that narrows": "--ema_decay 0.9995 --ema_narrows",
    "linear": "--anneal linear",
    "alternating mirror, smoothing 0.1": "--flip alternating --label_smoothing 0.1",
    "alternating mirror, smoothing 0.1, crops of 2": "--flip alternating --label_smoothing 0.1 --crop_padding 2",
    "alternating mirror, smoothing 0.1, cutout 8": "--flip alternating --label_smoothing 0.1 --cutout 8",
    "weight decay 0.03, lr 0.007": "--weight_decay 0.03 --lr 0.007",
    "28 epochs": "--epochs 28",
    "short rise": "--pct_start 0.05",
    "momentum 0.95": "--momentum 0.95",
    "muon": "--optimizer muon --lr 0.02 --momentum 0.85",
    "muon, lr 0.05": "--optimizer muon --lr 0.05 --momentum 0.85",
    "batches of 25, lr 0.006": "--batch_size 25 --lr 0.006 --ema_decay 0.999",
}
NO_LOOKAHEAD = "--lookahead 0 --ema_decay 0"
SPEEDRUN = {
    "baseline": "",
    "10 epochs": "--epochs 10",
    "8 epochs": "--epochs 8",
    "no lookahead": NO_LOOKAHEAD,
    "no lookahead, 8 epochs": f"{NO_LOOKAHEAD} --epochs 8",
    "no lookahead, 10 epochs": f"{NO_LOOKAHEAD} --epochs 10",
    "brightness, contrast": COLOURS,
    "batches of 1,500": "--batch_size 1500",
    "lr 0.2": "--lr 0.2",
    "smoothing 0.1": "--label_smoothing 0.1",
    "widths 64, 192, 256": "--speednet_widths 64 192 256",
    "widths 48, 192, 192, 10 epochs": "--speednet_widths 48 192 192 --epochs 10",
    "hardest 0.7": "--hard_share 0.7",
    "hardest half, 10 epochs": "--hard_share 0.5 --epochs 10",
    "hardest half, 12 epochs": "--hard_share 0.5 --epochs 12",
    "hardest half, no lookahead, 12 epochs": f"--hard_share 0.5 {NO_LOOKAHEAD} --epochs 12",
    "hardest half, no lookahead, 14 epochs": f"--hard_share 0.5 {NO_LOOKAHEAD} --epochs 14",
}
FOURTH = "--classifier_every 4"
EFFICIENT = "--optimizer adamax --sigma softplus --narrow_posteriors --kl_warmup 0.2"
CVAE_MNIST = {
    "baseline": "",
    "adamax": "--optimizer adamax",
    "adamax, lr 6e-3": "--optimizer adamax --lr 6e-3",
    "softplus": "--sigma softplus",
    "gradients up to 0.3": "--skip_gradient_norm 0.3",
    "classifier on every fourth": FOURTH,
    "classifier on every fourth, 15 epochs": f"{FOURTH} --epochs 15",
    "classifier on every fourth, 15 epochs, 7x7x4, 14x14x1": f"{FOURTH} --epochs 15 --spatial_latents 7 4 14 1",
    "classifier on every fourth, 15 epochs, 7x7x4, 14x14x1, encoder sees label": (
        f"{FOURTH} --epochs 15 --spatial_latents 7 4 14 1 --encoder_sees_label"
    ),
    "fine maps of 16": "--fine_width 16",
    "narrow posteriors, warm-up": "--narrow_posteriors --kl_warmup 0.2",
    "lr 4e-3": "--lr 4e-3",
    "latents of 7x7x4, 14x14x1": "--spatial_latents 7 4 14 1",
    "latents of 7x7x4, 14x14x2": "--spatial_latents 7 4 14 2",
    "2 blocks": "--n_blocks 2",
    "width 48": "--width 48",
    "no patches, fine maps of 16": "--patch_size 1 --fine_width 16",
    "adamax, softplus, narrow posteriors": EFFICIENT,
    "those with latents of 7x7x4, 14x14x1": f"{EFFICIENT} --spatial_latents 7 4 14 1",
    "those, width 48": f"{EFFICIENT} --spatial_latents 7 4 14 1 --width 48 --fine_width 32",
    "narrow posteriors, latents of 7x7x4, 14x14x1": (
        "--narrow_posteriors --kl_warmup 0.2 --spatial_latents 7 4 14 1"
    ),
}
CVAE_CIFAR10 = {
    "baseline": "",
    "adamax": "--optimizer adamax",
    "softplus": "--sigma softplus",
    "gradients up to 60": "--skip_gradient_norm 60",
    "gradients clipped to 20": "--max_grad_norm 20",
    "classifier on every fourth": FOURTH,
    "warm-up 0.2": "--kl_warmup 0.2",
    "classifier on every fourth, warm-up 0.2": f"{FOURTH} --kl_warmup 0.2",
    "classifier on every fourth, warm-up 0.2, fine maps of 32": f"{FOURTH} --kl_warmup 0.2 --fine_width 32",
    "classifier on every fourth, warm-up 0.2, fine maps of 32, 10 epochs": (
        f"{FOURTH} --kl_warmup 0.2 --fine_width 32 --epochs 10"
    ),
    "fine maps of 32": "--fine_width 32",
    "lr 3e-3": "--lr 3e-3",
    "5 components": "--n_mixtures 5",
    "no free bits": "--free_bits 0",
    "warm-up 0.4": "--kl_warmup 0.4",
    "latents of 4x4x16 too": "--spatial_latents 4 16 8 8 16 16",
    "two latents a side": "--spatial_latents 8 8 8 8 16 8 16 8",
    "latents of 16x16x32": "--spatial_latents 8 8 16 32",
    "2 blocks, fine maps of 32": "--n_blocks 2 --fine_width 32",
    "width 64, fine maps of 32": "--width 64 --fine_width 32",
    "adamax, softplus": "--optimizer adamax --sigma softplus",
    "those, two latents a side": "--optimizer adamax --sigma softplus --spatial_latents 8 8 8 8 16 8 16 8",
    "two latents a side, fine maps of 32": "--spatial_latents 8 8 8 8 16 8 16 8 --fine_width 32",
}


@dataclass(frozen=True)
class Task:
    """A script's recipes with their settings, and the validation's metric that decides: the higher, the better."""

    script: str
    settings: dict[str, dict[str, str]]  # of each recipe
    metric: dict[str, str]
    data: dict[str, str]  # the folder in --data of each recipe
    drawn: str  # flags of data that code draws
    common: str  # flags of all runs


TASKS = {
    "unet": Task(
        "train_unet",
        {name: UNET for name in ("mp-tr-bce", "mp-tr-dice", "strconv-tr-bce", "strconv-ups-dice")},
        dict.fromkeys(("mp-tr-bce", "mp-tr-dice", "strconv-tr-bce", "strconv-ups-dice"), "dice"),
        dict.fromkeys(("mp-tr-bce", "mp-tr-dice", "strconv-tr-bce", "strconv-ups-dice"), "oxford-iiit-pet"),
        "--dataset shapes",
        "--valid_fraction 0.5 --views one",  # of 60 held-out pictures, two bad ones decide
    ),
    "cifar": Task(
        "train_cifar",
        {"resnet": RESNET, "ultimus": ULTIMUS, "speedrun": SPEEDRUN},
        {"resnet": "accuracy", "ultimus": "accuracy", "speedrun": "accuracy_views"},
        dict.fromkeys(("resnet", "ultimus", "speedrun"), "cifar10"),
        "--dataset shapes",
        "--valid_fraction 0.1",
    ),
    "cvae": Task(
        "train_cvae",
        {"mnist": CVAE_MNIST, "cifar10": CVAE_CIFAR10},
        {"mnist": "elbo", "cifar10": "elbo"},
        {"mnist": "mnist", "cifar10": "cifar10"},
        "--dataset digits --channels 1",
        "--valid_fraction 0.05",
    ),
}


@dataclass(frozen=True)
class Config:
    task: Literal["unet", "cifar", "cvae"]  # which script
    output: str  # JSON lines, one a run; the runs are written in the folder of that name without its ending
    minutes: Weight  # after which no run is begun, and those that train are stopped and saved
    data: PathFlag = ""  # folder that holds oxford-iiit-pet, cifar10 and mnist; without it, drawn by code
    jobs: PositiveInt = 1  # runs at a time
    precision: Precision = "no"  # mixed precision
    recipes: tuple[str, ...] = ()  # of the script; without any, all that have settings here
    variants: tuple[str, ...] = ()  # names of settings to try; without any, all of each recipe
    seeds: PositiveInt = 1  # runs of each setting: seeds 0, 1, ..
    judge: PathFlag = "none"  # of cvae: run of train_cifar.py that counts label hits on the validation split
    flags: str = ""  # further flags of all runs, before those of a setting: --flags="--epochs 2"


def trials_of(config: Config) -> list[Trial]:
    """The runs that are to be made: of a seed, each setting of each recipe. Raises UsageError."""
    settings = TASKS[config.task].settings
    for recipe in config.recipes:
        if recipe not in settings:
            raise UsageError(f"--recipes {recipe} is none of: {', '.join(settings)}")
    chosen = {name: settings[name] for name in config.recipes or settings}
    known = dict.fromkeys(name for variants in chosen.values() for name in variants)
    for name in config.variants:
        if name not in known:
            raise UsageError(f"--variants {name!r} is none of: {', '.join(map(repr, known))}")
    trials = [
        Trial(f"{recipe}: {name}", (recipe, *common_flags(config, recipe), *flags.split()))
        for recipe, variants in chosen.items()
        for name, flags in variants.items()
        if name in (config.variants or known)
    ]
    return over_seeds(trials, config.seeds)


def common_flags(config: Config, recipe: str) -> list[str]:
    """What all runs of a recipe are given."""
    task = TASKS[config.task]
    flags = ["--no_final_test", *task.common.split()]
    if config.data:
        flags += ["--data_dir", str((Path(config.data) / task.data[recipe]).resolve())]
    else:
        flags += task.drawn.split()
    if config.task == "cvae":
        flags += ["--iw_samples", "0", "--judge", config.judge]
    return flags + config.flags.split()


def gigaflops_an_image(task: str, trial: Trial) -> float:
    """Floating-point operations of a run of --epochs for each training image, in 1e9, forwards and backwards."""
    script: Any = importlib.import_module(TASKS[task].script)
    settings = parse_config(script.RECIPES, "", list(trial.flags))
    shares: dict[int, float] = {settings.image_size: 1.0}  # of the images, by their side
    if task == "unet":
        steps = [script.picture_size(settings, step, 100) for step in range(100)]
        shares = {size: steps.count(size) / 100 for size in dict.fromkeys(steps)}
    with FakeTensorMode():  # shapes alone: nothing is computed
        model = script.build_model(settings, 2 if task == "unet" else 10)
        n_channels = getattr(settings, "channels", 3)
        flops = sum(share * flops_of_batch(model, n_channels, size) for size, share in shares.items())
    return settings.epochs * flops / N_COUNTED / 1e9


def flops_of_batch(model: torch.nn.Module, n_channels: int, size: int) -> int:
    """Of N_COUNTED images with sides of `size`, forwards and backwards. To be called with fake tensors."""
    labels = torch.zeros(N_COUNTED, dtype=torch.long)
    images = torch.zeros(N_COUNTED, n_channels, size, size)
    with FlopCounterMode(display=False) as counter:
        if isinstance(model, GenerativeModel):
            targets = images.to(torch.uint8) if model.likelihood.discrete else images
            log_prob, output, label_loss = model(targets, labels, labels, torch.zeros(N_COUNTED, model.n_noise))
            loss = log_prob.sum() + output.kl.sum() + label_loss.sum()
        elif isinstance(model, HardExamples):
            hardest = model(images, labels)
            loss = hardest.logits.sum() + hardest.proxy_logits.sum()
        else:
            loss = model(images).sum()
        loss.backward()
    return counter.get_total_flops()


def report(config: Config) -> None:
    """Make the runs, and print a table for each recipe."""
    task, trials = TASKS[config.task], trials_of(config)
    lines = run_trials(
        f"{task.script}.py",
        trials,
        minutes=config.minutes,
        jobs=config.jobs,
        output=Path(config.output),
        precision=config.precision,
    )
    first = {trial.name: trial for trial in reversed(trials)}

    def work_of(name: str) -> float:
        return gigaflops_an_image(config.task, first[name])

    for recipe in config.recipes or task.settings:
        metric = task.metric[recipe]
        own = [line for line in lines if line["name"].startswith(f"{recipe}: ")]
        rows = [(*row, work_of(row.name)) for row in scores(own, metric, higher_is_better=True)]
        headers = ("trial", f"valid/{metric}", "+-", "runs", "failed", "train s", "GFLOP an image")
        print(f"\n{tabulate(rows, headers, floatfmt=('', '.4f', '.4f', '', '', '.0f', '.1f'))}")


def main(args: list[str] | None = None) -> None:
    """Run from the command line; exits with code 2, after one line, where a flag cannot be used."""
    call_with_config(report, Config, __doc__ or "", args, (DataError,))


if __name__ == "__main__":
    run_tool(main)
