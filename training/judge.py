"""The judge: a classifier, trained on real images by train_cifar.py, that says what generated ones look like.

Where no run of that script is named, one is made, once, and kept in the cache.
"""

import contextlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from data.cache import cache_dir, content_key, writable_cache_dir
from data.errors import DataError
from data.images.labelled import ImageSplits
from data.images.pixels import normalise
from data.seeding import Stream, seeded_generator
from models.cvae_pictures import drawn, relabelled, wrong_labels
from models.generative_model import GenerativeModel
from training.checkpoints import latest_checkpoint
from training.errors import UsageError
from training.finished_run import FinishedRun
from training.run import sum_over_processes

_JUDGE_BYTES = 100 << 20  # what a judge's run takes on disk, with some to spare
_FEWEST_UPDATES = 250  # of a judge: after fewer it is hardly trained, and its average of the weights less
SCRIPT = Path(__file__).resolve().parents[1] / "train_cifar.py"
_OF_SEVERAL_PROCESSES = {
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
}


class Judge:
    """`judge(images)` are the labels that a classifier gives to pictures (N, C, S, S) in 0..1, C = 1 or 3.

    They are rounded to 256 levels and resized to what the classifier was trained on, real test images alike.
    `run` is one of train_cifar.py and `build_model` that script's. Raises UsageError for a run that has other
    classes than `class_names`.
    """

    def __init__(
        self,
        run: FinishedRun,
        build_model: Callable[[Any, int], nn.Module],
        class_names: Sequence[str],
        device: torch.device,
    ):
        if tuple(run.data["class_names"]) != tuple(class_names):
            theirs = ", ".join(run.data["class_names"][:12])
            ours = ", ".join(class_names[:12])
            raise UsageError(
                f"--judge {run.checkpoint.parents[1]} tells apart {theirs}; the data has {ours}: name a run on the "
                "same data"
            )
        self.image_size = run.data["image_size"]
        self.mean, self.std = (torch.tensor(run.data[name], device=device) for name in ("mean", "std"))
        self.model = run.load(build_model(run.config, len(class_names)), device)

    @torch.no_grad()
    def __call__(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """-> labels (N,) int64, on the judge's device."""
        side = self.image_size
        labels = []
        for batch in images.split(batch_size):
            batch = batch.to(self.mean.device).float().expand(-1, 3, -1, -1)
            if batch.shape[-1] != side:
                batch = F.interpolate(batch, (side, side), mode="bicubic", antialias=True)
            pixels = (255 * batch).round().clamp(0, 255).to(torch.uint8)
            labels.append(self.model(normalise(pixels, self.mean, self.std)).argmax(1))
        return torch.cat(labels)


def train_judge(splits: ImageSplits, dataset: str, data_dir: str, epochs: int) -> Path:
    """The folder of a run of train_cifar.py on the data that `splits` came from, trained on the first call.

    They came from `data_dir`, or else from `dataset`. It is a speed run of `epochs`, by one process, on all
    training images, those that are held out here too; of more epochs where these make less than `_FEWEST_UPDATES`
    updates. It lies in the cache, or in a temporary folder where that has no room. Raises UsageError where the
    training fails, and DataError where neither folder has room.
    """
    held = [splits.train] if splits.valid is None else [splits.train, splits.valid]
    n_images = sum(map(len, held))
    flags = ["speedrun", "--dataset", dataset, "--tracker", "none"]
    if n_images * epochs < 250 * 2000:  # too few for the speed run's updates; its rates suit no smaller batch
        batch_size = max(32, n_images * epochs // 500)
        epochs = max(epochs, math.ceil(_FEWEST_UPDATES / math.ceil(n_images / batch_size)))
        flags += ["--batch_size", str(batch_size), "--optimizer", "adamw", "--lr", "0.003"]
        flags += ["--weight_decay", "0.01", "--bias_lr_factor", "1", "--head_lr_factor", "1", "--pct_start", "0.2"]
    if splits.train.images.shape[1] == 1:  # digits: the mirror would give them another meaning; half the width does
        flags += ["--flip", "none", "--views", "one", "--speednet_widths", "32", "128", "128"]
    flags += ["--epochs", str(epochs)]
    pixels_and_labels = [tensor.numpy().tobytes() for each in held for tensor in (each.images, each.labels)]
    run = _judge_folder(Path("judges") / content_key({"flags": flags}, pixels_and_labels))
    if _is_finished(run):
        return run
    run.parent.mkdir(parents=True, exist_ok=True)
    # Aside, and put in place when it is whole: machines that share a home folder may all be training it.
    with tempfile.TemporaryDirectory(dir=run.parent, prefix=f"{run.name}.") as aside:
        trained = Path(aside) / "run"
        flags += ["--output_dir", str(trained), *(["--data_dir", data_dir] if data_dir else [])]
        print(f"training a classifier to judge by, once: {SCRIPT.name} {' '.join(flags)}", flush=True)
        alone = {name: value for name, value in os.environ.items() if name not in _OF_SEVERAL_PROCESSES}
        command = [sys.executable, str(SCRIPT), *flags]
        done = subprocess.run(command, env=alone, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UsageError(
                f"the classifier to judge by could not be trained ({last}): name a run with --judge, or none"
            )
        _put_in_place(trained, run)
    return run


def _put_in_place(trained: Path, run: Path) -> None:
    """Rename `trained` to `run`, unless another machine was faster; what was begun there and never ended goes."""
    if _is_finished(run):
        return
    with contextlib.suppress(FileNotFoundError):  # nothing lies there, as a rule
        run.rename(trained.with_name("unfinished"))
    try:
        trained.rename(run)
    except OSError:
        if not _is_finished(run):
            raise


def _judge_folder(name: Path) -> Path:
    """Where the judge of that name lies, or else can be put."""
    with contextlib.suppress(DataError):  # no home folder
        if _is_finished(cache_dir() / name):
            return cache_dir() / name
    return writable_cache_dir(_JUDGE_BYTES) / name


def _is_finished(run: Path) -> bool:
    try:
        return (run / "summary.json").exists() and latest_checkpoint(run) is not None
    except OSError:  # a folder that may not be looked into
        return False


@torch.no_grad()
def label_hits(
    accelerator: Accelerator,
    model: GenerativeModel,
    judge: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    seed: int,
    batch_size: int = 500,
) -> dict[str, float]:
    """How often `judge` sees the label that was asked for, as shares; the same on all processes.

    `classifier_accuracy`: in the real images (N, C, S, S) uint8 with labels (N,). `wrong_label_hits`: in what
    `model` makes of their `targets` (N, C, S, S) under a random wrong label each. `prior_hits`: in N pictures
    from the prior, of all labels alike.
    """
    model.eval()
    n, n_classes = len(images), model.cvae.n_classes
    hits = torch.zeros(3, device=images.device)
    batches = torch.arange(n, device=images.device).split(batch_size)
    for i in range(accelerator.process_index, len(batches), accelerator.num_processes):
        ids = batches[i]
        generator = seeded_generator(images.device, Stream.LABEL_HITS, seed, i)
        true = labels[ids]
        asked = ids % n_classes
        given = wrong_labels(true, n_classes, generator)
        with accelerator.autocast():
            under_wrong_label = relabelled(model, targets[ids], true, given, generator)
            new = drawn(model, asked, generator)
        judged = ((images[ids].float() / 255, true), (under_wrong_label, given), (new, asked))
        for k, (pictures, expected) in enumerate(judged):
            hits[k] += (judge(pictures).to(expected.device) == expected).sum()
    shares = (sum_over_processes(accelerator, hits) / n).tolist()
    return dict(zip(("classifier_accuracy", "wrong_label_hits", "prior_hits"), shares, strict=True))
