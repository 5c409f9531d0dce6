"""Training speed of train_cifar.py as it is made faster, step by step, and what augmentation costs, in one run.

    python -m benchmarks.cifar_speed --data_dir cifar10 --model resnet

The slow start loads and augments picture by picture on the host, as most tutorials do, and trains in fp32. Then
the data set and its augmentation move to the device, the memory format becomes channels_last, then come mixed
precision and torch.compile. Each variant trains with the script's own update, taking turns with the others
(benchmarks/turns.py). "no augmentation" is the line before it without any.
"""

import itertools
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.turns import (
    compile_as,
    load_of_device,
    ratio_text,
    serve_turns,
    set_backends_of,
    set_precision,
    speed_over,
    take_turns,
)

VARIANTS = {
    "picture by picture, fp32": {"resident": False, "channels_last": False, "precision": "no"},
    "+ data on the device": {"resident": True, "channels_last": False, "precision": "no"},
    "+ channels_last": {"resident": True, "channels_last": True, "precision": "no"},
    "+ mixed precision": {"resident": True, "channels_last": True, "precision": "mixed"},
    "no augmentation": {"resident": True, "channels_last": True, "precision": "mixed", "augmented": False},
    "+ compile": {"resident": True, "channels_last": True, "precision": "mixed", "compile": True},
}


@dataclass(frozen=True)
class Config:
    data_dir: str = ""  # images to train on, in a layout that the script reads; without it drawn shapes
    model: Literal["resnet", "ultimus", "speednet"] = "resnet"  # which net
    batch_size: int = 500  # images of an update
    precision: str = "bf16"  # the mixed precision: bf16, or fp16 on a GPU without bf16
    rounds: int = 5  # turns that each variant takes
    seconds: float = 10.0  # training time of a turn
    skip_compile: bool = False  # leave the compiled variant out
    output: str = ""  # JSON file to write the rounds to


class PictureByPicture:
    """The slow start: an `Augmenter` that crops, flips and normalises one picture after the other, on the host."""

    def __init__(self, images, augmentation, mean, std, seed: int):
        import numpy as np

        self.images, self.augmentation, self.mean, self.std = images, augmentation, mean.cpu(), std.cpu()
        self.device, self.rng = mean.device, np.random.default_rng(seed)

    def batch(self, ids):
        import torch

        return torch.stack([self._one(self.images[i]) for i in ids.tolist()]).to(self.device)

    def _one(self, image):
        import torch

        padding, (_, height, width) = self.augmentation.crop_padding, image.shape
        pixels = (image.float() - self.mean[:, None, None]) / self.std[:, None, None]
        pixels = torch.nn.functional.pad(pixels, (padding,) * 4, mode="reflect")
        y, x = self.rng.integers(0, 2 * padding + 1, 2)
        pixels = pixels[:, y : y + height, x : x + width]
        return pixels.flip(-1) if self.rng.random() < 0.5 else pixels


def train_in_turns(connection: Connection, config: Config, variant: dict) -> None:
    """The worker: gets ready, then trains for some seconds whenever told to; answers with images/s."""
    resident, augmented = variant["resident"], variant.get("augmented", True)
    set_precision(variant, config.precision)
    import torch

    import train_cifar as script
    from data.images.augmentation import Augmentation, Augmenter
    from data.images.pixels import channel_statistics, normalise
    from models.speednet import SpeedNet
    from training.cpu_memory import keep_freed_memory
    from training.run import open_accelerator

    torch.set_num_threads(os.cpu_count() or 1)
    recipe = {"resnet": "resnet", "ultimus": "ultimus", "speednet": "speedrun"}[config.model]
    settings = replace(
        script.RECIPES[recipe][1], data_dir=config.data_dir, valid_fraction=0, crop_padding=4, flip="random"
    )
    if not config.data_dir:
        settings = replace(settings, dataset="shapes")
    accelerator = open_accelerator()
    set_backends_of(variant)
    device = accelerator.device
    train = script.load_splits(settings).train
    statistics_of = channel_statistics(train.images)
    mean, std = (255 * statistics_of[name].to(device, torch.float32) for name in ("mean", "std"))
    augmentation = Augmentation(crop_padding=4, flip="random") if augmented else Augmentation()
    images = train.images.to(device) if resident else train.images
    augmenter: Any = (Augmenter if resident else PictureByPicture)(images, augmentation, mean, std, 0)
    labels = train.labels.to(device)
    torch.manual_seed(0)
    model = script.build_model(settings, int(labels.max()) + 1).to(device)
    if isinstance(model, SpeedNet):
        model.init_whitening(normalise(train.images[:1000].to(device), mean, std))
    if variant["channels_last"]:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    else:  # the augmenter hands out channels_last images
        batch_of = augmenter.batch
        augmenter.batch = lambda ids: batch_of(ids).contiguous()
    optimizer = script.build_optimizer(model, settings, accelerator.mixed_precision)
    compile_as(variant, model)
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # as training/setup.py has it
    model, optimizer = accelerator.prepare(model, optimizer)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def updates():
        for epoch in range(10**6):
            if resident:
                augmenter.draw(epoch)
            yield from script.plan_epoch(len(labels), config.batch_size, 0, epoch, device)

    stream = updates()
    steps = itertools.count()

    def train_once() -> int:
        ids = next(stream)
        script.train_update(accelerator, model, optimizer, augmenter, labels, settings, ids, next(steps), 1e-3)
        return len(ids)

    def train_for(seconds: float) -> float:
        return speed_over(seconds, train_once, device)

    started = time.perf_counter()
    train_for(min(config.seconds, 3.0))  # warm-up: compilation, allocator, caches
    warm_up_seconds = time.perf_counter() - started

    def seconds_a_batch(times: int = 30) -> float:
        laps = []
        for ids in script.plan_epoch(len(labels), config.batch_size, 0, 0, device)[:times]:
            synchronize()
            lap = time.perf_counter()
            augmenter.batch(ids)
            synchronize()
            laps.append(time.perf_counter() - lap)
        return statistics.median(laps)

    ready = {
        "warm_up_seconds": warm_up_seconds,
        "device": str(device),
        "seconds_a_batch": seconds_a_batch(),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        **load_of_device(variant, train_once, device),
    }
    serve_turns(connection, ready, train_for)


def main(config: Config) -> None:
    variants = {n: v for n, v in VARIANTS.items() if not (config.skip_compile and v.get("compile"))}
    speeds, ready = take_turns(train_in_turns, config, variants, config.rounds, config.seconds)
    first = next(iter(ready.values()))
    print(
        f"{config.model}, {first['n_parameters']:,} parameters, {config.batch_size} images an update, "
        f"{first['device']}, {config.rounds} rounds of {config.seconds:g} s"
    )
    print(f"{'':26} {'images/s':>9} {'times the first':>18} {'warm-up':>9}")
    for name, values in speeds.items():
        print(
            f"{name:26} {statistics.median(values):9,.0f} {ratio_text(speeds, name, to=next(iter(speeds)))} "
            f"{ready[name]['warm_up_seconds']:7.0f} s"
        )
    # From the batches' own times: the difference of two speeds of a few per cent drowns in a busy machine's noise.
    augmenting = ready["+ mixed precision"]["seconds_a_batch"] - ready["no augmentation"]["seconds_a_batch"]
    step = config.batch_size / statistics.median(speeds["+ mixed precision"])
    share = augmenting / step
    print(f"augmentation: {1e3 * augmenting:.2f} ms of a training step of {1e3 * step:.1f} ms, {share:.1%}")
    if config.output:
        Path(config.output).write_text(json.dumps({"images_per_second": speeds, "ready": ready}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True))
