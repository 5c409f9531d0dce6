import torch
from PIL import Image

from figures.classification import write_data_figures, write_result_figures

NAMES = ("cat", "dog", "ship")


def test_the_figures_of_the_data(tmp_path):
    channels = torch.tensor([0.25, 0.5, 0.75])
    values = {"count": torch.tensor(12), "shape": torch.tensor([3, 8, 8])}
    values |= {name: channels for name in ("min", "max", "mean", "std", "variance")}
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(12) % 3
    write_data_figures(tmp_path, {"train": values, "test": values}, images, labels, NAMES, torch.rand(4, 3, 8, 8))
    assert {p.name for p in tmp_path.iterdir()} == {"data_statistics.png", "samples.png", "augmentations.png"}
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 30


def test_only_mistakes_are_shown_as_mistakes(tmp_path):
    images, labels = torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2])
    right = torch.nn.functional.one_hot(labels, 3).float() * 0.8 + 0.1
    write_result_figures(tmp_path / "perfect", images, labels, right, NAMES)
    names = {"confusion_matrix.png", "class_accuracy.png"}
    assert {p.name for p in (tmp_path / "perfect").iterdir()} == names
    write_result_figures(tmp_path / "wrong", images, labels, right.roll(1, 0), NAMES)
    assert {p.name for p in (tmp_path / "wrong").iterdir()} == names | {"misclassified.png"}
