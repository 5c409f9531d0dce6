"""Training speed of train_unet.py as it is made faster, step by step, in one run.

    python -m benchmarks.unet_speed --data_dir oxford-iiit-pet --recipe mp-tr-dice

The slow start decodes, resizes and augments picture by picture in each epoch, as a plain data set class does, and
trains in fp32. Then the pictures stay decoded on the device and are augmented there with their masks, the memory
format becomes channels_last, then come mixed precision and torch.compile. Each variant trains with the script's own
update, taking turns with the others (benchmarks/turns.py).
"""

import itertools
import json
import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
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
    "decoded each epoch, fp32": {"resident": False, "channels_last": False, "precision": "no"},
    "+ pictures on the device": {"resident": True, "channels_last": False, "precision": "no"},
    "+ channels_last": {"resident": True, "channels_last": True, "precision": "no"},
    "+ mixed precision": {"resident": True, "channels_last": True, "precision": "mixed"},
    "no augmentation": {"resident": True, "channels_last": True, "precision": "mixed", "augmented": False},
    "+ compile": {"resident": True, "channels_last": True, "precision": "mixed", "compile": True},
}


@dataclass(frozen=True)
class Config:
    data_dir: str = ""  # Pet in its official layout; without it textured shapes, and no variant that decodes
    recipe: Literal["mp-tr-bce", "mp-tr-dice", "strconv-tr-bce", "strconv-ups-dice"] = "mp-tr-dice"  # which net
    image_size: int = 128  # side of a picture, in pixels
    width: int = 0  # channels of the first level; 0: the recipe's
    precision: str = "bf16"  # the mixed precision: bf16, or fp16 on a GPU without bf16
    rounds: int = 5  # turns that each variant takes
    seconds: float = 10.0  # training time of a turn
    skip_compile: bool = False  # leave the compiled variant out
    output: str = ""  # JSON file to write the rounds to


class DecodedEachTime:
    """The slow start: reads, resizes, flips and normalises one picture after the other, on the host."""

    def __init__(self, data_dir: Path, names: list[str], image_size: int, mean, std, seed: int):
        import numpy as np

        self.data_dir, self.names, self.image_size, self.device = data_dir, names, image_size, mean.device
        self.mean, self.std, self.rng = (
            mean.cpu()[:, None, None],
            std.cpu()[:, None, None],
            np.random.default_rng(seed),
        )

    def draw(self, epoch: int) -> None:
        """Nothing to draw: `batch` makes its choices as it goes."""

    def batch(self, ids, size: int = 0):
        """As `JointAugmenter.batch`; `size` is the one it was made for."""
        import torch

        pairs = [self._one(self.names[i]) for i in ids.tolist()]
        return tuple(torch.stack(parts).to(self.device) for parts in zip(*pairs, strict=True))

    def _one(self, name: str):
        import torch

        from data.images.masked import masks_from_trimaps
        from data.images.pets import decode_pair

        image_path = self.data_dir / "images" / f"{name}.jpg"
        trimap_path = self.data_dir / "annotations" / "trimaps" / f"{name}.png"
        pixels, trimap = (torch.tensor(part) for part in decode_pair(image_path, trimap_path, self.image_size))
        image, mask = (pixels - self.mean) / self.std, masks_from_trimaps(trimap, "binary", "pet")
        return (image.flip(-1), mask.flip(-1)) if self.rng.random() < 0.5 else (image, mask)


def train_in_turns(connection: Connection, config: Config, variant: dict) -> None:
    """The worker: gets ready, then trains for some seconds whenever told to; answers with images/s."""
    resident, augmented = variant["resident"], variant.get("augmented", True)
    set_precision(variant, config.precision)
    import torch

    import train_unet as script
    from data.images.epoch_order import plan_epoch
    from data.images.joint_augmentation import JointAugmentation, JointAugmenter
    from data.images.pixels import channel_statistics
    from training.cpu_memory import keep_freed_memory
    from training.run import open_accelerator

    torch.set_num_threads(os.cpu_count() or 1)
    settings = replace(
        script.RECIPES[config.recipe][1],
        data_dir=config.data_dir,
        image_size=config.image_size,
        half_size_share=0.0,  # all updates at the whole size
    )
    if config.width:
        settings = replace(settings, width=config.width)
    if not config.data_dir:
        settings = replace(settings, dataset="shapes")
    accelerator = open_accelerator()
    set_backends_of(variant)
    device = accelerator.device
    splits = script.load_splits(settings)
    train = splits.train
    statistics_of = channel_statistics(train.images)
    mean, std = (255 * statistics_of[name].to(device, torch.float32) for name in ("mean", "std"))
    augmenter: Any  # what the script's update asks of it, both kinds have
    if resident and augmented:
        augmenter = script.build_augmenter(settings, train.to(device), mean, std)
    elif resident:
        on_device = train.to(device)
        augmenter = JointAugmenter(on_device.images, on_device.masks, JointAugmentation(), mean, std, 0)
    else:
        augmenter = DecodedEachTime(Path(config.data_dir), train.names, config.image_size, mean, std, 0)
    torch.manual_seed(0)
    model = script.build_model(settings, len(splits.class_names)).to(device)
    if variant["channels_last"]:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    elif resident:  # the augmenter hands out channels_last images
        batch_of = augmenter.batch
        augmenter.batch = lambda *args: tuple(part.contiguous() for part in batch_of(*args))
    optimizer = script.build_optimizer(model, settings, accelerator.mixed_precision)
    compile_as(variant, model)
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # as training/setup.py has it
    model, optimizer = accelerator.prepare(model, optimizer)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def updates():
        for epoch in range(10**6):
            augmenter.draw(epoch)
            yield from plan_epoch(len(train), settings.batch_size, 0, epoch, device)

    stream = updates()
    steps = itertools.count()
    update = partial(script.train_update, accelerator, model, optimizer, augmenter, settings, 1)

    def train_once() -> int:
        ids = next(stream)
        update(ids, next(steps), 1e-3)
        return len(ids)

    def train_for(seconds: float) -> float:
        return speed_over(seconds, train_once, device)

    started = time.perf_counter()
    sizes = {len(ids): ids for ids in plan_epoch(len(train), settings.batch_size, 0, 0, device)}
    for ids in sizes.values():  # warm-up: batches of both sizes are compiled
        update(ids, 0, 0.0)
    train_for(min(config.seconds, 3.0))  # allocator, caches
    warm_up_seconds = time.perf_counter() - started

    def seconds_a_batch(times: int = 30) -> float:
        laps = []
        for _ in range(times):
            ids = next(stream)
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
        "batch_size": settings.batch_size,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        **load_of_device(variant, train_once, device),
    }
    serve_turns(connection, ready, train_for)


def main(config: Config) -> None:
    variants = {
        name: variant
        for name, variant in VARIANTS.items()
        if not (config.skip_compile and variant.get("compile")) and (config.data_dir or variant["resident"])
    }
    speeds, ready = take_turns(train_in_turns, config, variants, config.rounds, config.seconds)
    first = next(iter(ready.values()))
    print(
        f"{config.recipe}, {first['n_parameters']:,} parameters, {config.image_size}x{config.image_size} pixels, "
        f"{first['device']}, {config.rounds} rounds of {config.seconds:g} s"
    )
    print(f"{'':26} {'images/s':>9} {'times the first':>18} {'warm-up':>9}")
    for name, values in speeds.items():
        print(
            f"{name:26} {statistics.median(values):9,.1f} {ratio_text(speeds, name, to=next(iter(speeds)))} "
            f"{ready[name]['warm_up_seconds']:7.0f} s"
        )
    augmenting = ready["+ mixed precision"]["seconds_a_batch"] - ready["no augmentation"]["seconds_a_batch"]
    speed, size = statistics.median(speeds["+ mixed precision"]), first["batch_size"]
    print(
        f"augmentation: {1e3 * augmenting:.2f} ms of a training step of {1e3 * size / speed:.1f} ms, "
        f"{augmenting * speed / size:.1%}"
    )
    if config.output:
        Path(config.output).write_text(json.dumps({"images_per_second": speeds, "ready": ready}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True))
