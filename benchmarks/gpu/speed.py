"""Speed of the four scripts on the device, from a plain fp32 loop to a compiled one, as ratios of turns."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch

from benchmarks import cifar_speed, cvae_speed, translation_speed, unet_speed
from benchmarks.gpu.card import Finding, Options, Task
from benchmarks.made_corpus import write_made_corpus
from benchmarks.turns import Speeds, ratios, take_turns

BF16_IS_NATIVE = not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 0)
LOSS_ALLOWED = 0.97  # a variant below this share of the speed of the one before it is slower than the noise

PLAIN = {"precision": "no", "plain": True}  # torch's defaults: no TF32 in matrix products, cuDNN does not try out
LOW = [("+ fp16", "fp16"), *([("+ bf16 instead", "bf16")] if BF16_IS_NATIVE else [])]
BEST = LOW[-1][1]
ON_DEVICE = {"resident": True, "channels_last": True}


def _steps(first: str, before: dict[str, Any], after: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The variants: `first` in plain fp32, those of `after` as they are, TF32, low precision, compiled."""
    last = list(after.values())[-1] if after else before
    variants = {first: {**before, **PLAIN}, **{name: {**change, **PLAIN} for name, change in after.items()}}
    variants["+ TF32, cuDNN's trials"] = {**last, "precision": "no"}
    variants |= {name: {**last, "precision": precision} for name, precision in LOW}
    variants["+ compile"] = {**last, "precision": BEST, "compile": True}
    return variants


def translation(options: Options) -> Finding:
    """The size of opus-en-it, on made sentences as long as those of books."""
    before, after = {"batching": "padded"}, {"+ bucketed": {"batching": "bucketed"}}
    variants = _steps("padded, fp32", before, after)
    del variants["+ compile"]  # a task of its own: it gets ready for longer than the others train
    variants = {name: {**variant, "compile": False} for name, variant in variants.items()}
    config = _translation_config(options)
    return _compare(options, translation_speed.train_in_turns, config, variants, "target tokens/s", least=20)


def compiled_translation(options: Options) -> Finding:
    """The same model compiled, whole and layer by layer, against one that is not."""
    ways = {BEST: False, "+ compile": True, "+ compile, block by block instead": "blocks"}
    variants = {
        name: {"batching": "bucketed", "precision": BEST, "compile": compiled} for name, compiled in ways.items()
    }
    config = _translation_config(options)
    return _compare(options, translation_speed.train_in_turns, config, variants, "target tokens/s")


def _translation_config(options: Options) -> translation_speed.Config:
    n_pairs = 300 if options.tiny else 12_000
    files = options.train_files or write_made_corpus(options.made("corpus"), n_pairs)
    config = translation_speed.Config(d_model=512, n_heads=8, n_layers=6, d_ff=2048, max_tokens=8192)
    if options.tiny:
        config = translation_speed.Config(
            d_model=32, n_heads=2, n_layers=1, d_ff=32, max_tokens=512, vocab_size=600
        )
    return replace(config, train_files=tuple(files))


def classifiers(model: Literal["speednet", "resnet"]) -> Callable[[Options], Finding]:
    """For one of train_cifar.py's nets, on drawn shapes or CIFAR-10."""

    def find(options: Options) -> Finding:
        batch_size = 2000 if model == "speednet" else 500
        config = cifar_speed.Config(
            data_dir=options.cifar_dir, model=model, batch_size=16 if options.tiny else batch_size
        )
        variants = _steps(
            "picture by picture, fp32",
            {"resident": False, "channels_last": False},
            {
                "+ data on the device": {"resident": True, "channels_last": False},
                "+ channels_last": {"resident": True, "channels_last": True},
            },
        )
        return _compare(options, cifar_speed.train_in_turns, config, variants, "images/s")

    return find


def unet(options: Options) -> Finding:
    """A U-Net on Oxford-IIIT Pet or textured shapes."""
    config = unet_speed.Config(data_dir=options.pet_dir)
    if options.tiny:
        config = replace(config, image_size=32, width=8)
    channels_last = {"+ channels_last": {"resident": True, "channels_last": True}}
    on_device = {"resident": True, "channels_last": False}
    if options.pet_dir:
        decoded = {"resident": False, "channels_last": False}
        after = {"+ pictures on the device": on_device, **channels_last}
        variants = _steps("decoded each epoch, fp32", decoded, after)
    else:
        variants = _steps("pictures on the device, fp32", on_device, channels_last)
    return _compare(options, unet_speed.train_in_turns, config, variants, "images/s")


def cvae(options: Options) -> Finding:
    """The VAE of the cifar10 recipe; its images are noise."""
    config = cvae_speed.Config()
    if options.tiny:
        config = cvae_speed.Config(recipe="mnist", batch_size=4, n_images=8, width=16)
    return _compare(options, cvae_speed.train_in_turns, config, _steps("fp32", {}, {}), "images/s")


def with_graphs(worker: Callable, config: Any, variant: dict[str, Any]) -> Callable[[Options], Finding]:
    """For a small model: eager, compiled, and its kernels launched as CUDA graphs, which spares the host."""

    def find(options: Options) -> Finding:
        ways = {BEST: False, "+ compile": True, "+ CUDA graphs": "graphs"}
        variants = {name: {**variant, "precision": BEST, "compile": way} for name, way in ways.items()}
        return _compare(options, worker, config, variants, "images/s")

    return find


def load_by_script(options: Options) -> Finding:
    """Whether the device or the host is what an update waits for, model by model, each in its best eager form."""
    classifier = cifar_speed.Config(data_dir=options.cifar_dir)
    workers: dict[str, tuple[Callable, Any, dict[str, Any]]] = {
        "Transformer": (
            translation_speed.train_in_turns,
            _translation_config(options),
            {"batching": "bucketed", "compile": False},
        ),
        "SpeedNet": (cifar_speed.train_in_turns, replace(classifier, model="speednet", batch_size=2000), ON_DEVICE),
        "ResNet": (cifar_speed.train_in_turns, replace(classifier, model="resnet", batch_size=500), ON_DEVICE),
        "U-Net": (unet_speed.train_in_turns, unet_speed.Config(data_dir=options.pet_dir), ON_DEVICE),
        "VAE": (cvae_speed.train_in_turns, cvae_speed.Config(), {}),
    }
    numbers = {}
    given = {"precision": BEST, "load": True}
    for name, (worker, config, variant) in workers.items():
        speeds, ready = take_turns(worker, config, {name: {**variant, **given}}, 1, options.seconds)
        load = {key: round(ready[name][key], 3) for key in ("milliseconds", "kernels", "device_busy")}
        numbers[name] = {"examples_per_second": round(speeds[name][0], 1), **load}
    told = [
        f"{name} {load['milliseconds']:.1f} ms, {load['kernels']:.0f} kernels, {load['device_busy']:.0%} busy"
        for name, load in numbers.items()
    ]
    return Finding("; ".join(told), None, numbers)


def _compare(
    options: Options,
    worker: Callable,
    config: Any,
    variants: dict[str, dict[str, Any]],
    unit: str,
    least: float | None = None,
) -> Finding:
    """Let the variants take turns. Expected: none slower than the one before; the best `least` times the first."""
    if options.tiny:  # what is compiled takes a minute on a CPU, and tests of its own
        variants = {name: variant for name, variant in variants.items() if not variant.get("compile")}
    speeds, ready = take_turns(worker, config, variants, options.rounds, options.seconds, at_once=True)
    names = list(variants)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    slower = [
        f"{name} ({_ratio(speeds, name, before):.2f} of {before})"
        for before, name in itertools.pairwise(names)
        if _ratio(speeds, name, before) < LOSS_ALLOWED
    ]
    best = max(medians, key=lambda name: medians[name])
    times = ratios(speeds, best, to=names[0])
    found = (
        f"{medians[best]:,.0f} {unit} by {best!r}, {statistics.median(times):.1f} times {names[0]!r} "
        f"({min(times):.1f}-{max(times):.1f})"
    )
    if slower:
        found += f"; slower: {', '.join(slower)}"
    enough = least is None or statistics.median(times) >= least
    numbers = {
        name: {
            unit: round(medians[name], 1),
            "times_the_first": [round(value, 3) for value in ratios(speeds, name, to=names[0])],
            "warm_up_seconds": round(ready[name]["warm_up_seconds"], 1),
        }
        for name in names
    }
    return Finding(found, None if options.tiny else enough and not slower, numbers)


def _ratio(speeds: Speeds, name: str, to: str) -> float:
    return statistics.median(ratios(speeds, name, to))


NOT_SLOWER = "no step slower than the one before"
SPEED = [
    Task("what an update waits for", "kept on record", load_by_script, timed=True, needs_cuda=True),
    Task("translation, 6+6 layers of 512", f"20 times padded fp32; {NOT_SLOWER}", translation, timed=True),
    Task("the same, compiled", NOT_SLOWER, compiled_translation, timed=True, needs_cuda=True),
    Task("U-Net", NOT_SLOWER, unet, timed=True),
    Task("VAE for CIFAR-10", NOT_SLOWER, cvae, timed=True),
    Task("SpeedNet", NOT_SLOWER, classifiers("speednet"), timed=True),
    Task("ResNet", NOT_SLOWER, classifiers("resnet"), timed=True),
    Task(
        "SpeedNet by CUDA graphs",
        NOT_SLOWER,
        with_graphs(cifar_speed.train_in_turns, cifar_speed.Config(model="speednet", batch_size=2000), ON_DEVICE),
        timed=True,
        needs_cuda=True,
    ),
    Task(
        "VAE by CUDA graphs",
        NOT_SLOWER,
        with_graphs(cvae_speed.train_in_turns, cvae_speed.Config(), {}),
        timed=True,
        needs_cuda=True,
    ),
]
