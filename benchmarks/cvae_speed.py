"""Training speed of train_cvae.py as it is made faster, step by step, in one run.

    python -m benchmarks.cvae_speed --recipe cifar10

fp32 comes first, then mixed precision, then torch.compile. Each variant trains with the script's own update, its
images on the device, taking turns with the others (benchmarks/turns.py).
"""

import itertools
import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Literal

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
    "fp32": {"precision": "no"},
    "+ mixed precision": {"precision": "mixed"},
    "+ compile": {"precision": "mixed", "compile": True},
}


@dataclass(frozen=True)
class Config:
    recipe: Literal["mnist", "cifar10"] = "cifar10"  # which net; its images are noise, its times are not
    n_images: int = 2000  # images to train on
    batch_size: int = 0  # images of an update; 0: the recipe's
    width: int = 0  # of the net; 0: the recipe's
    precision: str = "bf16"  # the mixed precision: bf16, or fp16 on a GPU without bf16
    rounds: int = 5  # turns that each variant takes
    seconds: float = 10.0  # training time of a turn


def train_in_turns(connection: Connection, config: Config, variant: dict) -> None:
    """The worker: gets ready, then trains for some seconds whenever told to; answers with images/s."""
    set_precision(variant, config.precision)
    import torch

    import train_cvae as script
    from data.images.epoch_order import plan_epoch
    from data.images.labelled import LabelledImages
    from training.cpu_memory import keep_freed_memory
    from training.run import open_accelerator

    torch.set_num_threads(os.cpu_count() or 1)
    settings = script.RECIPES[config.recipe][1]
    settings = replace(
        settings, batch_size=config.batch_size or settings.batch_size, width=config.width or settings.width
    )
    accelerator = open_accelerator()
    set_backends_of(variant)
    device = accelerator.device
    torch.manual_seed(0)
    shape = (config.n_images, settings.channels, settings.image_size, settings.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    data = LabelledImages(images, torch.arange(config.n_images, device=device) % 10)
    model = script.build_model(settings, 10)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch forgot it
    optimizer = script.build_optimizer(model, settings, accelerator.mixed_precision)
    compile_as(variant, model)
    if accelerator.device.type == "cpu":
        keep_freed_memory()  # as training/setup.py has it
    model, optimizer = accelerator.prepare(model, optimizer)
    total_steps = 10**6
    update = partial(script.train_update, accelerator, model, optimizer, data, settings, total_steps)

    def updates():
        for epoch in range(total_steps):
            for ids in plan_epoch(config.n_images, settings.batch_size, 0, epoch, device):
                if len(ids) == settings.batch_size:
                    yield ids

    stream = updates()
    steps = itertools.count()

    def train_once() -> int:
        ids = next(stream)
        update(ids, next(steps), 1e-4)
        return len(ids)

    def train_for(seconds: float) -> float:
        return speed_over(seconds, train_once, device)

    started = time.perf_counter()
    train_for(min(config.seconds, 3.0))  # warm-up: compilation, allocator, caches
    ready = {
        "warm_up_seconds": time.perf_counter() - started,
        "device": str(device),
        "batch_size": settings.batch_size,
        "n_parameters": sum(p.numel() for p in model.parameters()),
        **load_of_device(variant, train_once, device),
    }
    serve_turns(connection, ready, train_for)


def main(config: Config) -> None:
    speeds, ready = take_turns(train_in_turns, config, VARIANTS, config.rounds, config.seconds)
    first = next(iter(ready.values()))
    print(
        f"{config.recipe}, {first['n_parameters']:,} parameters, {first['batch_size']} images an update, "
        f"{first['device']}, {config.rounds} rounds of {config.seconds:g} s"
    )
    print(f"{'':26} {'images/s':>9} {'times the first':>18} {'warm-up':>9}")
    for name, values in speeds.items():
        print(
            f"{name:26} {statistics.median(values):9,.0f} {ratio_text(speeds, name, to=next(iter(speeds)))} "
            f"{ready[name]['warm_up_seconds']:7.0f} s"
        )


if __name__ == "__main__":
    main(tyro.cli(Config, use_underscores=True))
