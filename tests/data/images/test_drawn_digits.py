import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from data.images.drawn_digits import DIGITS, _distance_to_path, drawn_digits


@pytest.fixture(scope="module")
def digits() -> tuple:
    return drawn_digits(n_train=2000, n_test=500)


def test_shapes_types_and_balance(digits):
    train_images, train_labels, test_images, test_labels, class_names = digits
    assert train_images.shape == (2000, 1, 28, 28) and test_images.shape == (500, 1, 28, 28)
    assert train_images.dtype == test_images.dtype == torch.uint8
    assert train_labels.dtype == test_labels.dtype == torch.int64
    assert train_labels.bincount().tolist() == [200] * 10 and test_labels.bincount().tolist() == [50] * 10
    assert class_names == tuple("0123456789")
    assert set(drawn_digits(13, 7)[1].bincount().tolist()) == {1, 2}
    assert train_labels[:100].unique().numel() == 10  # in random order


def test_white_on_black_with_soft_edges_and_a_blank_border(digits):
    images = digits[0]
    assert 0.7 < (images == 0).float().mean() < 0.9
    assert (images.flatten(1).amax(1) == 255).float().mean() > 0.9  # the thinnest pens miss the pixels' centres
    assert images.flatten(1).amax(1).min() > 150
    grey = ((images > 0) & (images < 255)).float().mean()
    assert 0.05 < grey < 0.2
    inside = torch.zeros(28, 28, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    assert not images[..., ~inside].any()


def test_the_style_varies(digits):
    """Every class has thin and thick, left and right, upright and leaning examples."""
    images, labels = digits[0][:, 0].double() / 255, digits[1]
    at = torch.arange(28.0, dtype=torch.double)
    ink = images.sum((1, 2))
    x, y = (images.sum(axis) @ at / ink for axis in (1, 2))
    dx, dy = at - x[:, None], at - y[:, None]
    lean = -torch.einsum("nij,ni,nj->n", images, dy, dx) / torch.einsum("nij,ni->n", images, dy**2)
    for label in range(10):
        mine = labels == label
        low, high = ink[mine].quantile(torch.tensor([0.05, 0.95], dtype=torch.double))
        assert high > 1.6 * low
        assert x[mine].std() > 0.5 and y[mine].std() > 0.5
        assert lean[mine].std() > 0.1


def test_deterministic_by_seed_and_independent_of_the_other_split(digits):
    again = drawn_digits(n_train=2000, n_test=20)
    assert torch.equal(again[0], digits[0]) and torch.equal(again[1], digits[1])
    assert torch.equal(drawn_digits(n_train=10, n_test=500)[2], digits[2])
    assert not torch.equal(drawn_digits(n_train=2000, n_test=0, seed=1)[0], digits[0])


def test_no_picture_occurs_twice(digits):
    images = torch.cat([digits[0], digits[2]])
    assert len({image.numpy().tobytes() for image in images}) == len(images) == 2500


@pytest.mark.parametrize("size", [16, 32, 48])
def test_other_sizes_show_the_same_digits(digits, size):
    images, labels = drawn_digits(10, 0, image_size=size)[:2]
    assert images.shape == (10, 1, size, size)
    expected, expected_labels = drawn_digits(10, 0)[:2]
    assert torch.equal(labels, expected_labels)
    ink, expected_ink = (each.float().mean((1, 2, 3)) for each in (images, expected))
    torch.testing.assert_close(ink, expected_ink, rtol=0.1, atol=0)


def test_distance_against_a_dense_sampling_of_the_pieces():
    start, end = np.random.default_rng(0).uniform(0, 12, (2, 3, 4, 2))
    end[0, 0] = start[0, 0]  # a piece of no length is a point
    share = np.linspace(0, 1, 2001)[:, None, None, None]
    points = (start + share * (end - start)).transpose(1, 0, 2, 3).reshape(3, 1, -1, 2)
    y, x = np.mgrid[:12, :12] + 0.5
    pixels = np.stack([x, y], -1).reshape(1, -1, 1, 2)
    expected = np.linalg.norm(points - pixels, axis=-1).min(-1).reshape(3, 12, 12)
    np.testing.assert_allclose(_distance_to_path(start, end, 12), expected, atol=0.01)


def test_strokes_are_unbroken_and_fill_the_height():
    for strokes in DIGITS:
        points = np.concatenate(strokes)
        np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [-1, 1], atol=0.02)
        for stroke in strokes:
            assert np.linalg.norm(np.diff(stroke, axis=0), axis=1).max() < 0.3


def test_a_linear_model_makes_mistakes(digits):
    """Ridge regression on the pixels, in its dual form."""
    train, test = (images.float().flatten(1) / 255 for images in (digits[0][:1000], digits[2]))
    train, test = train - train.mean(0), test - train.mean(0)
    targets = one_hot(digits[1][:1000], 10) - 0.1
    scores = test @ train.T @ torch.linalg.solve(train @ train.T + 30 * torch.eye(1000), targets)
    assert 0.5 < accuracy(scores, digits[3]) < 0.95


def test_a_tiny_convolutional_net_learns_in_seconds(digits):
    train, test = (images.float() / 255 for images in (digits[0], digits[2]))
    n_epochs, batch_size, lr = 4, 50, 1e-2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = []
        for n_in, n_out in ((1, 16), (16, 32)):
            layers += [nn.Conv2d(n_in, n_out, 5, stride=2, padding=2), nn.BatchNorm2d(n_out), nn.ReLU()]
        net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, n_epochs * len(train) // batch_size)
        for _ in range(n_epochs):
            for ids in torch.randperm(len(train)).split(batch_size):
                cross_entropy(net(train[ids]), digits[1][ids]).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    with torch.no_grad():
        assert accuracy(net.eval()(test), digits[3]) > 0.98


def accuracy(scores: Tensor, labels: Tensor) -> float:
    return (scores.argmax(1) == labels).float().mean().item()
