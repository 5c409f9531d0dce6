"""Small sets in files, for processes that train a few updates: most of their work is to make the demo's data."""

from pathlib import Path

from image_sets import encoded, hwc, write_parquet

from benchmarks.made_corpus import write_made_corpus
from data.images.drawn_shapes import drawn_shapes


def small_data(script: str, folder: Path) -> list[str]:
    """Flags that have `script` train on 400 pairs of sentences, or 300 pictures, in `folder`; of others none."""
    if script == "translation":
        return ["--train_files", *write_made_corpus(folder, 400, mean_words=5)]
    if script == "cifar":
        return ["--data_dir", str(_pictures(folder / "pictures"))]
    return []


def _pictures(folder: Path) -> Path:
    if not folder.exists():
        train_images, train_labels, test_images, test_labels, names = drawn_shapes(n_train=300, n_test=45)
        for split, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
            contents = [encoded(hwc(image)) for image in images.numpy()]
            write_parquet(folder / f"{split}-00000.parquet", contents, labels.tolist(), names=names)
    return folder
