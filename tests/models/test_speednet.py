import itertools

import torch

from models.speednet import SpeedNet, whitening_filters


def correlated_images(n: int = 40, side: int = 12) -> torch.Tensor:
    """Smooth pictures, whose neighbouring pixels and channels go together as in photographs."""
    torch.manual_seed(0)
    noise = torch.randn(n, 3, side + 4, side + 4)
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1)
    return smooth + 0.7 * smooth.mean(1, keepdim=True) + 0.05 * torch.randn(n, 3, side, side)


def test_the_parameters():
    model = SpeedNet()
    assert sum(p.numel() for p in model.parameters()) == 1_972_792
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 1_971_352
    assert not model.whiten.weight.requires_grad


def test_whitening_makes_patches_uncorrelated_with_unit_variance():
    images = correlated_images()
    filters = whitening_filters(images, kernel_size=2, eps=0.0)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[:12], -filters[12:])
    responses = torch.nn.functional.conv2d(images, filters[:12]).permute(1, 0, 2, 3).reshape(12, -1).double()
    torch.testing.assert_close(
        responses @ responses.T / responses.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0
    )


def test_no_filter_of_grey_images_answers_with_rounding_errors():
    grey = correlated_images()[:, :1].expand(-1, 3, -1, -1)
    filters = whitening_filters(grey)
    responses = torch.nn.functional.conv2d(grey, filters).square().mean((0, 2, 3))
    torch.testing.assert_close(responses, torch.ones(24), atol=0.2, rtol=0)
    assert len({tuple(f.flatten().tolist()) for f in filters}) == 8  # four directions of a 2x2 patch, both signs
    black = whitening_filters(torch.zeros(2, 3, 4, 4))
    assert black.isfinite().all() and len(black) == 24


def test_the_filters_are_those_of_a_plain_computation():
    """The second moments by loops over images and places; eigenvectors compared up to their sign."""
    images = correlated_images(6, 5)
    patches = [
        images[i, :, y : y + 2, x : x + 2].flatten() for i, y, x in itertools.product(range(6), range(4), range(4))
    ]
    moments = sum(torch.outer(p, p) for p in patches).double() / len(patches)
    eigenvalues, eigenvectors = torch.linalg.eigh(moments)
    filters = whitening_filters(images, eps=5e-4)[:12].flatten(1).double()
    for filter_, eigenvalue, eigenvector in zip(filters, eigenvalues.flip(0), eigenvectors.T.flip(0), strict=True):
        expected = eigenvector / (eigenvalue + 5e-4).sqrt()
        torch.testing.assert_close(filter_ * (filter_ @ expected).sign(), expected, atol=1e-4, rtol=1e-3)


def test_blocks_begin_by_passing_their_input_on():
    block = SpeedNet().blocks[1]
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(block.conv1(x)[:, :64], x)
