"""Draw pictures of a given label with a finished run: `python -m tools.sample RUN --label 7` writes a PNG.

All that it needs is in the run's folder: the checkpoint brings weights, config and class names along.
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from data.seeding import Stream, seeded_generator
from figures.images import plot_image_grid
from models.cvae_pictures import drawn
from train_cvae import Config, build_model
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import default_device, open_run
from training.ranges import Columns, Seed, Temperature


class Sampler:
    """A trained conditional VAE: `Sampler(run)(label, n)` are n new pictures of a label.

    `run` is a run folder (its best checkpoint is taken) or one checkpoint. Raises UsageError if there is none.
    """

    def __init__(self, run: str | Path, device: torch.device | None = None):
        opened = open_run(run, "cvae", Config)
        self.config = opened.config
        self.device = device or default_device()
        self.class_names = opened.data["class_names"]
        self.model = opened.load(build_model(self.config, len(self.class_names)), self.device)

    def __call__(self, label: str, n: int, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """(n, C, S, S) in 0..1, on the CPU. Raises UsageError for a label that is no class's name."""
        if label not in self.class_names:
            raise UsageError(f"no class is called {label}: choose one of {', '.join(self.class_names)}")
        index = self.class_names.index(label)
        labels = torch.full((n,), index, device=self.device)
        generator = seeded_generator(self.device, Stream.SAMPLES, seed, index)
        return drawn(self.model, labels, generator, temperature).cpu()


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
