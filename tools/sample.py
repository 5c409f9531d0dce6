"""Draw pictures of a given label with a finished run: `python -m tools.sample RUN --label 7` writes a PNG.

All that it needs is in the run's folder: the checkpoint brings weights, config and class names along.
"""

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from data.seeding import Stream, seeded_generator
from figures.images import plot_image_grid
from figures.vae import (
    write_interpolations,
    write_prior_samples,
    write_reconstructions,
    write_relabelled,
    write_wrong_labels,
)  # fmt: skip
from models.cvae_objective import Objective
from models.cvae_pictures import drawn, interpolated, reconstructed, relabelled, wrong_labels
from training.checkpoints import find_checkpoint, load_weights, read_state
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.ranges import Columns, Seed, Temperature


class Sampler:
    """A trained conditional VAE: `Sampler(run)(label, n)` are n new pictures of a label.

    `run` is a run folder (its newest checkpoint is taken) or one checkpoint. Raises UsageError if there is none.
    """

    def __init__(self, run: str | Path, device: torch.device | None = None):
        from train_cvae import Config, build_model  # which draws its own figures by this module

        checkpoint = find_checkpoint(str(run), Path(run), prefer_best=True)
        saved = read_state(checkpoint)["config"]
        if "latent_dim" not in saved:
            raise UsageError(f"{checkpoint} is not of train_cvae.py: name the folder of one of its runs")
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        saved["spatial_latents"] = tuple(map(tuple, saved["spatial_latents"]))  # JSON has lists alone
        self.config = Config(**{f.name: saved[f.name] for f in fields(Config) if f.name in saved})
        self.class_names = json.loads((checkpoint / "data.json").read_text(encoding="utf-8"))["class_names"]
        self.model = build_model(self.config, len(self.class_names))
        load_weights(self.model, checkpoint)
        self.model.to(self.device).eval()

    def __call__(self, label: str, n: int, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """(n, C, S, S) in 0..1, on the CPU. Raises UsageError for a label that is no class's name."""
        if label not in self.class_names:
            raise UsageError(f"no class is called {label}: choose one of {', '.join(self.class_names)}")
        index = self.class_names.index(label)
        labels = torch.full((n,), index, device=self.device)
        generator = seeded_generator(self.device, Stream.SAMPLES, seed, index)
        return drawn(self.model, labels, generator, temperature).cpu()


@torch.no_grad()
def write_pictures(
    folder: Path, model: Objective, images: Tensor, targets: Tensor, labels: Tensor, names, seed: int
) -> None:
    """Write the PNGs of what the model makes of test images (N, C, S, S) uint8 with `targets` and labels (N,).

    wrong_labels, reconstructions, relabelled, interpolations and prior_samples; of the first 25 images.
    """
    model.eval()
    n_classes, device = len(names), images.device
    images, targets, true = images[:25].cpu(), targets[:25], labels[:25]
    generator = seeded_generator(device, Stream.FIGURES, seed, 0)
    given = wrong_labels(true, n_classes, generator)
    outputs = relabelled(model, targets, true, given, generator)
    write_wrong_labels(folder / "wrong_labels.png", images, true.cpu(), given.cpu(), outputs.cpu(), names)
    outputs = reconstructed(model, targets, true, generator)
    write_reconstructions(folder / "reconstructions.png", images, true.cpu(), outputs.cpu(), names)
    under_each = []
    for k in range(n_classes):
        same_draw = seeded_generator(device, Stream.FIGURES, seed, 1)  # of the latent, for all labels
        under_each.append(relabelled(model, targets[:10], true[:10], torch.full_like(true[:10], k), same_draw))
    write_relabelled(
        folder / "relabelled.png", images[:10], torch.stack(under_each, 1).cpu(), true[:10].cpu(), names
    )
    ends = len(targets) // 2
    pictures = interpolated(model, targets[:ends], true[:ends], targets[-ends:], true[-ends:], n_steps=9)
    rows = [f"{names[a]} to {names[b]}" for a, b in zip(true[:ends].tolist(), true[-ends:].tolist(), strict=True)]
    write_interpolations(folder / "interpolations.png", pictures[:8].cpu(), rows[:8])
    samples = drawn(model, torch.arange(n_classes, device=device).repeat_interleave(10), generator)
    write_prior_samples(folder / "prior_samples.png", samples.unflatten(0, (n_classes, 10)).cpu(), names)


def main(
    run: Positional[PathFlag],
    label: Annotated[tuple[str, ...], tyro.conf.arg(help="names of classes; without, all of them")] = (),
    n: Annotated[Columns, tyro.conf.arg(help="pictures of each label")] = 10,
    seed: Annotated[Seed, tyro.conf.arg(help="another one draws other pictures")] = 0,
    temperature: Annotated[Temperature, tyro.conf.arg(help="below 1: less varied, more typical pictures")] = 1.0,
    output: Annotated[PathFlag, tyro.conf.arg(help="PNG file to write")] = "samples.png",
) -> None:
    """Write a PNG with a row of drawn pictures for each label.

    Args:
        run: run folder or one checkpoint
    """
    try:
        sampler = Sampler(run)
        names = label or tuple(sampler.class_names)
        pictures = torch.cat([sampler(name, n, seed, temperature) for name in names])
        plot_image_grid(Path(output), pictures, None, n_columns=n, row_labels=names)
        print(f"{len(pictures)} pictures of {', '.join(names)}: {output}")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
