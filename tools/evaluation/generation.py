"""A run of train_cvae.py on other images: bounds, label hits, what the latent tells of the label, pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

import train_cifar
from data.images.labelled import load_test_images
from data.seeding import Stream
from figures.vae import plot_active_units, write_latent_map, write_pictures
from tools.evaluation.request import Request, figures_below
from tools.sample import Sampler
from train_cvae import draw_targets, evaluate
from training.finished_run import open_run
from training.judge import Judge, label_hits
from training.latent_probe import probe_accuracy


def evaluate_cvae(run: str, accelerator: Accelerator, request: Request, folder: Path) -> tuple[dict[str, Any], str]:
    """Bounds on the folder's images as in the run's own test, and pictures of them.

    Label hits too where there is a judge: the one that is named, or the one that the run named. Writes figures
    into `folder`. Returns the metrics and what to print. Raises UsageError and DataError.
    """
    device = accelerator.device
    sampler = Sampler(run, device)
    config, model, names = sampler.config, sampler.model, sampler.class_names
    judge = _find_judge(request.judge or config.judge, names, device, asked=bool(request.judge))
    images = load_test_images(
        request.data_dir,
        names,
        image_size=config.image_size,
        n_channels=config.channels,
        whole=request.split == "all",
    ).to(device)
    targets = draw_targets(model, images.images, config, Stream.TEST_PIXELS)
    metrics, latents, kl_units = evaluate(accelerator, model, targets, images.labels, config, config.iw_samples)
    report = [
        f"ELBO {metrics['elbo']:.2f} nats, {metrics['bits_per_dim']:.3f} bits/dim on {len(images):,} images: "
        f"reconstruction {metrics['reconstruction']:.2f}, KL {metrics['kl']:.2f}"
    ]
    if judge:
        hits = label_hits(accelerator, model, judge, images.images, targets, images.labels, config.seed)
        metrics |= hits
        report.append(
            f"label hits {hits['wrong_label_hits']:.1%} under a wrong label, {hits['prior_hits']:.1%} from the "
            f"prior, by a classifier of {hits['classifier_accuracy']:.2%}"
        )
    else:
        report.append("label hits are counted by a classifier of these classes: name a run of one by --judge")
    labels = images.labels.cpu()
    half = len(latents) // 2  # the probe learns from a half and is asked about the other
    if half:
        probed = probe_accuracy(latents[:half], labels[:half], latents[half:], labels[half:], len(names), seed=0)
        metrics |= {f"probe_{name}": share for name, share in probed.items()}
    figures = figures_below(folder)
    write_pictures(figures, model, images.images, targets, images.labels, names, config.seed)
    write_latent_map(figures / "latent_map.png", latents, labels, names)
    plot_active_units(figures / "active_units.png", kl_units)
    return metrics, "\n".join(report)


def _find_judge(run: str, class_names: Sequence[str], device: torch.device, asked: bool) -> Judge | None:
    """The classifier of a run that is named; None where the evaluated run named none, or one that is gone."""
    if not asked and (run in ("", "none") or not Path(run).exists()):
        return None
    classifier = open_run(run, "cifar", train_cifar.Config)
    return Judge(classifier, train_cifar.build_model, class_names, device)
