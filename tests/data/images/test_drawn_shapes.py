import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from data.images.drawn_shapes import drawn_shapes


@pytest.fixture(scope="module")
def shapes() -> tuple:
    return drawn_shapes(n_train=2000, n_test=500)


def test_shapes_types_and_balance(shapes):
    train_images, train_labels, test_images, test_labels, class_names = shapes
    assert train_images.shape == (2000, 3, 32, 32) and test_images.shape == (500, 3, 32, 32)
    assert train_images.dtype == test_images.dtype == torch.uint8
    assert train_labels.dtype == test_labels.dtype == torch.int64
    assert train_labels.bincount().tolist() == [200] * 10 and test_labels.bincount().tolist() == [50] * 10
    assert len(set(class_names)) == 10
    assert set(drawn_shapes(13, 7)[1].bincount().tolist()) == {1, 2}
    assert train_labels[:100].unique().numel() == 10  # in random order


def test_the_whole_range_of_values_is_used_and_every_picture_has_two_colours(shapes):
    images = shapes[0]
    assert images.min() == 0 and images.max() == 255
    assert ((images.float().mean((0, 2, 3)) - 127.5).abs() < 10).all()
    quantile = torch.tensor([0.02, 0.98])
    dark, bright = torch.quantile(images.float().flatten(2), quantile, dim=2).mean(-1)  # mean over the channels
    assert (bright - dark).min() > 60


def test_deterministic_by_seed_and_independent_of_the_other_split(shapes):
    again = drawn_shapes(n_train=2000, n_test=20)
    assert torch.equal(again[0], shapes[0]) and torch.equal(again[1], shapes[1])
    assert torch.equal(drawn_shapes(n_train=10, n_test=500)[2], shapes[2])
    assert not torch.equal(drawn_shapes(n_train=2000, n_test=0, seed=1)[0], shapes[0])


def test_no_picture_occurs_twice(shapes):
    images = torch.cat([shapes[0], shapes[2]])
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 2500


def test_other_sizes():
    assert drawn_shapes(10, 10, image_size=48)[2].shape == (10, 3, 48, 48)


def test_a_linear_model_fails(shapes):
    """Ridge regression on the pixels, in its dual form."""
    train, test = (images.float().flatten(1) / 255 for images in (shapes[0][:1000], shapes[2]))
    train, test = train - train.mean(0), test - train.mean(0)
    targets = one_hot(shapes[1][:1000], 10) - 0.1
    scores = test @ train.T @ torch.linalg.solve(train @ train.T + 30 * torch.eye(1000), targets)
    assert accuracy(scores, shapes[3]) < 0.4


def test_a_tiny_convolutional_net_learns_in_seconds(shapes):
    train, test = (images.float() / 127.5 - 1 for images in (shapes[0], shapes[2]))
    n_epochs, batch_size, lr = 6, 50, 1e-2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        channels = (3, 16, 32, 32)
        layers = []
        for n_in, n_out in itertools.pairwise(channels):
            layers += [nn.Conv2d(n_in, n_out, 5, stride=2, padding=2), nn.BatchNorm2d(n_out), nn.ReLU()]
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, n_epochs * len(train) // batch_size)
        for _ in range(n_epochs):
            for ids in torch.randperm(len(train)).split(batch_size):
                cross_entropy(net(train[ids]), shapes[1][ids]).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    with torch.no_grad():
        assert accuracy(net.eval()(test), shapes[3]) > 0.75


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return (scores.argmax(1) == labels).float().mean().item()
