import pytest
import torch

from data.errors import DataError
from data.images import held_out as held_out_module
from data.images.held_out import chosen_rows, held_out_by_hash
from data.images.labelled import ImageSplits, LabelledImages


def images_of(n: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, 4, 4), dtype=torch.uint8, generator=generator)


def splits_of(labels: list[int], images: torch.Tensor | None = None) -> ImageSplits:
    images = images_of(len(labels)) if images is None else images
    train = LabelledImages(images, torch.tensor(labels))
    return ImageSplits(train, LabelledImages(images_of(6, seed=1), torch.arange(6) % 3), ("a", "b", "c"))


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


@pytest.mark.parametrize(
    ("n", "fraction", "expected"), [(1000, 0.02, 20), (1000, 0.5, 500), (10, 0.01, 1), (7, 0, 0)]
)
def test_about_the_fraction_is_held_out_and_at_least_one(n, fraction, expected):
    held_out = held_out_by_hash(images_of(n), fraction)
    assert held_out.shape == (n,) and held_out.dtype == torch.bool and held_out.sum() == expected


def test_the_pixels_decide_in_whatever_order_and_memory_format_they_lie():
    images = images_of(200)
    held_out = held_out_by_hash(images, 0.1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    assert torch.equal(held_out_by_hash(images[order], 0.1), held_out[order])
    assert torch.equal(held_out_by_hash(images.contiguous(memory_format=torch.channels_last), 0.1), held_out)
    torch.manual_seed(99)
    assert torch.equal(held_out_by_hash(images, 0.1), held_out)


def test_equal_images_fall_on_the_same_side():
    images = images_of(100).repeat(3, 1, 1, 1)
    held_out = held_out_by_hash(images, 0.1).view(3, 100)
    assert torch.equal(held_out[0], held_out[1]) and torch.equal(held_out[0], held_out[2]) and held_out.sum() == 30


def test_a_larger_fraction_holds_out_the_same_and_more():
    images = images_of(300)
    small, large = held_out_by_hash(images, 0.05), held_out_by_hash(images, 0.2)
    assert bool((large | ~small).all())


def test_nothing_left_to_train_on_is_refused_in_one_line():
    for images, fraction in ((images_of(3), 0.9), (images_of(1).repeat(5, 1, 1, 1), 0.1)):
        with pytest.raises(DataError, match=r"--valid_fraction .* leaves none to train on") as error:
            held_out_by_hash(images, fraction)
        assert "\n" not in str(error.value)


def test_splits_are_disjoint_with_their_labels_and_the_test_split_stays():
    splits = splits_of([i % 3 for i in range(60)])
    with_validation = splits.with_validation(0.2)
    train, valid = with_validation.train, with_validation.valid
    assert len(valid) == 12 and len(train) == 48
    assert not rows(train.images) & rows(valid.images)
    assert rows(train.images) | rows(valid.images) == rows(splits.train.images)
    label_of = {
        image.numpy().tobytes(): int(k) for image, k in zip(splits.train.images, splits.train.labels, strict=True)
    }
    for split in (train, valid):
        assert [label_of[image.numpy().tobytes()] for image in split.images] == split.labels.tolist()
    assert with_validation.test is splits.test and with_validation.class_names == splits.class_names


def test_without_a_fraction_nothing_is_held_out():
    splits = splits_of([0, 1, 2])
    assert splits.with_validation(0) is splits and splits.valid is None


def test_a_class_that_would_have_none_to_train_on_keeps_its_images():
    images = images_of(40)
    first = int(held_out_by_hash(images, 0.1).nonzero()[0, 0])
    labels = [0, 1] * 20
    labels[first] = 2  # the only one of its class
    splits = splits_of(labels, images).with_validation(0.1)
    assert len(splits.valid) == 3 and 2 not in splits.valid.labels
    assert splits.train.labels.bincount(minlength=3).min() == 1


def test_few_images_of_one_a_class_all_stay():
    splits = splits_of([0, 1, 2])
    assert splits.with_validation(0.02).valid is None and len(splits.with_validation(0.02).train) == 3


def test_many_chosen_rows_are_mapped_from_the_cache_and_are_the_same(monkeypatch, tmp_path):
    images, chosen = images_of(50), torch.arange(50) % 3 > 0
    monkeypatch.setenv("ONECYCLE_CACHE", str(tmp_path))
    assert torch.equal(chosen_rows(images, chosen), images[chosen]) and not list(tmp_path.iterdir())
    monkeypatch.setattr(held_out_module, "LARGE", 33 * 48)
    for which, n_entries in ((chosen, 1), (chosen.nonzero()[:, 0], 1), (~chosen, 1), (torch.ones(50) > 0, 2)):
        assert torch.equal(chosen_rows(images, which), images[which])
        assert len(list(tmp_path.iterdir())) == n_entries
