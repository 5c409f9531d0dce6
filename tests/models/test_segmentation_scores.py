import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, jaccard_score

from models.segmentation_losses import IGNORE
from models.segmentation_scores import dice_of_images, pixel_confusion, predict_masks, segmentation_scores

NAMES = {2: ("background", "pet"), 3: ("pet", "background", "border")}


def masks(n_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true masks (9, 6, 8): random ones, and all kinds of empty ones."""
    generator = torch.Generator().manual_seed(n_classes)
    predicted, targets = torch.randint(0, n_classes, (2, 9, 6, 8), generator=generator, dtype=torch.uint8)
    targets[0] = 0  # no foreground
    predicted[1] = 0
    predicted[2], targets[2] = 0, 0  # neither
    predicted[3], targets[3] = 1, 1  # nothing else
    predicted[4], targets[4] = 0, 1  # all wrong
    predicted[5] = targets[5]
    targets[6][torch.rand(6, 8, generator=generator) < 0.3] = IGNORE
    targets[7] = IGNORE
    return predicted, targets


def of_sklearn(score, predicted: torch.Tensor, targets: torch.Tensor, n_classes: int, average: str | None) -> float:
    counted = targets != IGNORE
    labels = None if average == "binary" else range(n_classes)
    if average == "macro":  # of the classes that occur
        labels = np.union1d(targets[counted], predicted[counted])
    return score(
        targets[counted].numpy(), predicted[counted].numpy(), labels=labels, average=average, zero_division=1.0
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.parametrize("n_classes", [2, 3])
def test_scores_are_those_of_scikit_learn(n_classes):
    predicted, targets = masks(n_classes)
    counts = pixel_confusion(predicted, targets, n_classes)
    scores = segmentation_scores(counts, NAMES[n_classes])
    average = "binary" if n_classes == 2 else "macro"
    # scikit-learn refuses no pixels at all; all scores of such an image are 1.
    counted_images = [i for i in range(len(targets)) if (targets[i] != IGNORE).any()]
    expected = {}
    for name, score in (("dice", f1_score), ("iou", jaccard_score)):
        expected[name] = of_sklearn(score, predicted, targets, n_classes, average)
        of_images = [of_sklearn(score, predicted[i], targets[i], n_classes, average) for i in counted_images]
        expected[f"{name}_per_image"] = (sum(of_images) + 1) / len(targets)
        of_classes = of_sklearn(score, predicted, targets, n_classes, average=None)
        expected |= {f"{name}_{NAMES[n_classes][k]}": of_classes[k] for k in range(n_classes)}
        if name == "dice":
            assert dice_of_images(counts)[counted_images].tolist() == pytest.approx(of_images, abs=1e-6)
            assert dice_of_images(counts)[7] == 1
    counted = targets != IGNORE
    expected["pixel_accuracy"] = accuracy_score(targets[counted], predicted[counted])
    assert scores == pytest.approx(expected, abs=1e-6)
    assert scores["dice"] != pytest.approx(scores["dice_per_image"], abs=1e-3)  # or nothing was told apart


@pytest.mark.parametrize("n_classes", [2, 3])
def test_confusions_are_those_of_scikit_learn(n_classes):
    predicted, targets = masks(n_classes)
    counts = pixel_confusion(predicted, targets, n_classes)
    assert counts.shape == (9, n_classes, n_classes) and counts.dtype == torch.int64
    for i in [0, 1, 2, 3, 4, 5, 6, 8]:
        counted = targets[i] != IGNORE
        expected = confusion_matrix(targets[i][counted], predicted[i][counted], labels=range(n_classes))
        assert counts[i].tolist() == expected.tolist()
    assert counts[7].eq(0).all()


def test_rows_are_true_and_columns_predicted():
    predicted, targets = torch.tensor([[[0, 1, 1, 0]]]), torch.tensor([[[0, 0, 0, 1]]])
    assert pixel_confusion(predicted, targets, 2).tolist() == [[[1, 2], [1, 0]]]


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_scores_do_not_depend_on_the_batch_size(batch_size):
    predicted, targets = masks(3)
    whole = segmentation_scores(pixel_confusion(predicted, targets, 3), NAMES[3])
    parts = [
        pixel_confusion(predicted[start : start + batch_size], targets[start : start + batch_size], 3)
        for start in range(0, len(targets), batch_size)
    ]
    assert segmentation_scores(torch.cat(parts), NAMES[3]) == whole


def test_pixels_beyond_the_integers_of_fp32_are_counted():
    """A float32 count stands still at 2^24."""
    counts = torch.tensor([[[2**26 + 1, 2**25], [0, 2**26]]])
    scores = segmentation_scores(torch.cat([counts, counts]), NAMES[2])
    assert scores["dice"] == pytest.approx(2**27 / (2**27 + 2**25))
    assert scores["pixel_accuracy"] == (2**27 + 1) / (2**27 + 2**25 + 1)


def test_nothing_counted_is_all_right():
    scores = segmentation_scores(torch.zeros(2, 2, 2, dtype=torch.int64), NAMES[2])
    assert set(scores.values()) == {1.0}


def test_masks_are_the_most_probable_classes():
    logits = torch.tensor([[[[-1.0, 0.0, 0.1, torch.inf]]]])
    assert predict_masks(logits).tolist() == [[[0, 0, 1, 1]]]
    logits = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    predicted = predict_masks(logits)
    assert predicted.shape == (2, 5, 3) and predicted.dtype == torch.uint8
    most_probable = logits.softmax(1).gather(1, predicted.long()[:, None])[:, 0]
    assert torch.equal(most_probable, logits.softmax(1).amax(1))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"are not both \(B, H, W\)"):
        pixel_confusion(torch.zeros(1, 4, 4), torch.zeros(2, 4, 4), 2)
    with pytest.raises(RuntimeError, match="out of bounds"):
        pixel_confusion(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 2), 2)
    for counts in (torch.zeros(0, 2, 2), torch.zeros(3, 3, 3)):
        with pytest.raises(ValueError, match="of images with 2 classes"):
            segmentation_scores(counts, NAMES[2])
