import numpy as np
import pytest
import torch

from data.images.pixels import along_rows, channel_statistics, normalise

MEAN, STD = torch.tensor([125.3, 122.9, 113.9]), torch.tensor([63.0, 62.1, 66.7])


def images_of(n: int, channels: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 5, 7), (2, 7, 5)])
def test_normalising_is_the_plain_formula_in_channels_last(shape):
    images = images_of(10, *shape)
    mean, std = MEAN[: shape[0]], STD[: shape[0]]
    expected = (images.float() - mean[:, None, None]) / std[:, None, None]
    for layout in (images, images.contiguous(memory_format=torch.channels_last)):
        normalised = normalise(layout, mean, std)
        assert torch.equal(normalised, expected) and normalised.dtype == torch.float32
        assert normalised.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, images_of(10, *shape))  # left as they were


def test_statistics_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr("data.images.pixels.CHUNK", 7)
    images = images_of(23, 3, 5, 4)
    images[:, 1] = images[:, 1] // 2 + 3
    statistics = channel_statistics(images)
    assert statistics["count"].item() == 23 and statistics["shape"].tolist() == [3, 5, 4]
    pixels = images.numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    functions = {"min": np.min, "max": np.max, "mean": np.mean, "std": np.std, "variance": np.var}
    for name, function in functions.items():
        np.testing.assert_allclose(statistics[name].numpy(), function(pixels, axis=1), rtol=1e-12)


def test_a_channel_of_one_value_has_no_spread():
    images = torch.full((4, 1, 3, 3), 51, dtype=torch.uint8)
    statistics = channel_statistics(images)
    assert (statistics["mean"].item(), statistics["std"].item()) == (pytest.approx(0.2), 0)


def test_values_of_channels_are_repeated_along_a_row_of_pixels():
    mean, std = along_rows(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), 3, torch.device("cpu"))
    assert mean.tolist() == [1, 2, 1, 2, 1, 2] and std.tolist() == [3, 4, 3, 4, 3, 4]
