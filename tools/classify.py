"""Label image files with a finished run: `python -m tools.classify RUN FILES ..`.

All that it needs is in the run's folder: the checkpoint brings weights, config, class names and statistics along.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import tyro
from tyro.conf import Positional

from data.errors import DataError
from data.images.decoding import decode_image
from data.images.pixels import normalise
from models.test_time_augmentation import Views, logits_over_views
from train_cifar import Config, build_model
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import default_device, open_run
from training.ranges import BatchSize, PositiveInt


class Classifier:
    """A trained net with its class names: `Classifier(run)(paths)` yields (class name, probability) lists.

    `run` is a run folder (its best checkpoint is taken) or one checkpoint. Raises UsageError if there is none.
    """

    def __init__(self, run: str | Path, device: torch.device | None = None):
        opened = open_run(run, "cifar", Config)
        self.config = opened.config
        self.device = device or default_device()
        self.class_names, self.image_size = opened.data["class_names"], opened.data["image_size"]
        self.mean, self.std = (torch.tensor(opened.data[name], device=self.device) for name in ("mean", "std"))
        self.model = opened.load(build_model(self.config, len(self.class_names)), self.device)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, views: Views = "one") -> torch.Tensor:
        """Images (B, 3, S, S) uint8 -> class probabilities (B, K) in fp32, on the CPU."""
        inputs = normalise(images.to(self.device), self.mean, self.std)
        return logits_over_views(self.model, inputs, views).softmax(1).cpu()

    def __call__(
        self, paths: Sequence[str | Path], *, views: Views = "one", top_k: int = 1, batch_size: int = 500
    ) -> Iterator[list[tuple[str, float]]]:
        """For each file, in order, the `top_k` likeliest classes and their probabilities.

        A picture of another size is resized and cropped as in training. Raises DataError, naming the file, for
        one that cannot be read.
        """
        for i in range(0, len(paths), batch_size):
            images = [self._read(Path(path)) for path in paths[i : i + batch_size]]
            top = self.probabilities(torch.stack(images), views).topk(min(top_k, len(self.class_names)))
            for shares, classes in zip(top.values.tolist(), top.indices.tolist(), strict=True):
                yield [(self.class_names[k], share) for k, share in zip(classes, shares, strict=True)]

    def _read(self, path: Path) -> torch.Tensor:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}; name image files") from error
        return torch.tensor(decode_image(content, str(path), self.image_size, 3))


def main(
    run: Positional[PathFlag],
    files: Positional[tuple[PathFlag, ...]],
    views: Annotated[Views | None, tyro.conf.arg(help="views that are averaged; without: the run's")] = None,
    top_k: Annotated[PositiveInt, tyro.conf.arg(help="classes shown of each image")] = 1,
    batch_size: Annotated[BatchSize, tyro.conf.arg(help="images classified at a time")] = 500,
) -> None:
    """Print a line a file: its name, then its likeliest classes and their probabilities, between tabs.

    Args:
        run: run folder or one checkpoint
        files: image files
    """
    try:
        classifier = Classifier(run)
        views = views or classifier.config.views
        labels = classifier(files, views=views, top_k=top_k, batch_size=batch_size)
        for file, classes in zip(files, labels, strict=True):
            print("\t".join([file, *(f"{name}\t{share:.4f}" for name, share in classes)]))
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main), stdout_is_the_result=True)
