"""A classifier of real images that says what generated ones look like: a run of train_cifar.py.

Where no run is named, one is trained by that script, once, and kept in the cache.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from data.cache import cache_dir, content_key, writable_cache_dir
from data.errors import DataError
from data.images.labelled import ImageSplits
from data.seeding import Stream, seeded_generator
from models.cvae_objective import Objective
from models.cvae_pictures import drawn, relabelled, wrong_labels
from tools.classify import Classifier
from training.checkpoints import latest_checkpoint
from training.errors import UsageError
from training.run import sum_over_processes

_JUDGE_BYTES = 100 << 20  # what a judge's run takes on disk, with some to spare
SCRIPT = Path(__file__).resolve().parents[1] / "train_cifar.py"


class Judge:
    """`judge(images)` are the labels that a classifier gives to pictures (N, C, S, S) in 0..1, C = 1 or 3.

    They are rounded to 256 levels and resized to what the classifier was trained on, real test images alike.
    Raises UsageError for a run that is not of train_cifar.py or has other classes than `class_names`.
    """

    def __init__(self, run: str | Path, class_names: tuple[str, ...], device: torch.device):
        self.classifier = Classifier(run, device)
        if tuple(self.classifier.class_names) != tuple(class_names):
            theirs, ours = ", ".join(self.classifier.class_names[:12]), ", ".join(class_names[:12])
            raise UsageError(
                f"--judge {run} tells apart {theirs}; the data has {ours}: name a run on the same data"
            )

    def __call__(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """-> labels (N,) int64, on the CPU."""
        side = self.classifier.image_size
        labels = []
        for batch in images.split(batch_size):
            batch = batch.float().expand(-1, 3, -1, -1)
            if batch.shape[-1] != side:
                batch = F.interpolate(batch, (side, side), mode="bicubic", antialias=True)
            pixels = (255 * batch).round().clamp(0, 255).to(torch.uint8)
            labels.append(self.classifier.probabilities(pixels).argmax(1))
        return torch.cat(labels)


def find_judge(
    run: str, dataset: str, data_dir: str, splits: ImageSplits, epochs: int, device: torch.device
) -> Judge:
    """The judge of `run`, or, where that is empty, one trained for `epochs` on the training images of `splits`.

    They came from `data_dir`, or else from `dataset`. Raises UsageError as `Judge` and `train_judge` do.
    """
    if not run:
        images = splits.train.images
        in_colour = images.shape[1] == 3
        fingerprint = [images.numpy().tobytes(), splits.train.labels.numpy().tobytes()]
        path = train_judge(dataset, data_dir, epochs, len(images), in_colour, fingerprint)
        run = str(path)
    return Judge(run, splits.class_names, device)


def train_judge(
    dataset: str, data_dir: str, epochs: int, n_images: int, in_colour: bool, fingerprint: list[bytes]
) -> Path:
    """The folder of a speed run of train_cifar.py on this data, trained on the first call: one process, all cores.

    It lies in the cache, or in a temporary folder where that has no room. `fingerprint`: bytes that differ where
    the data does. Raises UsageError where the training fails, and DataError where neither folder has room.
    """
    flags = ["speedrun", "--dataset", dataset, "--epochs", str(epochs), "--tracker", "none"]
    if n_images * epochs < 250 * 2000:  # too few for the speed run's updates; its rates suit no smaller batch
        flags += ["--batch_size", str(max(32, n_images * epochs // 500)), "--optimizer", "adamw", "--lr", "0.003",
                  "--weight_decay", "0.01", "--bias_lr_factor", "1", "--head_lr_factor", "1",
                  "--pct_start", "0.2"]  # fmt: skip
    if not in_colour:  # digits: they would mean something else in the mirror, and half the width is enough
        flags += ["--flip", "none", "--views", "one", "--speednet_widths", "32", "128", "128"]
    run = _judge_folder(Path("judges") / content_key({"flags": flags}, fingerprint))
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
    accelerator: Accelerator, model: Objective, judge: Judge, images: Tensor, targets: Tensor, labels: Tensor,
    seed: int, batch_size: int = 500,
) -> dict[str, float]:  # fmt: skip
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
        ids, generator = batches[i], seeded_generator(images.device, Stream.LABEL_HITS, seed, i)
        true, asked = labels[ids], ids % n_classes
        given = wrong_labels(true, n_classes, generator)
        with accelerator.autocast():
            under_wrong_label = relabelled(model, targets[ids], true, given, generator)
            new = drawn(model, asked, generator)
        judged = ((images[ids].float() / 255, true), (under_wrong_label, given), (new, asked))
        for k, (pictures, expected) in enumerate(judged):
            hits[k] += (judge(pictures).to(expected.device) == expected).sum()
    shares = (sum_over_processes(accelerator, hits) / n).tolist()
    return dict(zip(("classifier_accuracy", "wrong_label_hits", "prior_hits"), shares, strict=True))


_OF_SEVERAL_PROCESSES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
                         "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"}  # fmt: skip
