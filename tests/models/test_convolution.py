import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import convolution
from models.convolution import Conv2d, images_in_a_row, side_by_side
from models.resnet import ResNet9
from models.speednet import SpeedNet
from models.unet import UNet


@pytest.fixture
def amx(monkeypatch):
    """The way of a CPU with AMX, on any CPU; counts how often it is gone."""
    calls: list[tuple[int, ...]] = []
    original = convolution.side_by_side

    def counted(maps: Tensor) -> Tensor:
        calls.append(tuple(maps.shape))
        return original(maps)

    monkeypatch.setattr(convolution, "HAS_AMX", True)
    monkeypatch.setattr(convolution, "side_by_side", counted)
    return calls


def pair(bias: bool = True, **arguments) -> tuple[nn.Conv2d, Conv2d]:
    """Torch's layer, and ours with its weights."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(16, 24, 3, padding=1, bias=bias, **arguments)
    ours = Conv2d(16, 24, 3, padding=1, bias=bias, **arguments)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def run(layer: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Outputs and all gradients of a layer in bf16, in a pass that weights every output differently."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = layer(images)
    outputs.backward(torch.linspace(-1, 1, outputs.numel()).view_as(outputs).to(outputs.dtype))
    assert images.grad is not None
    gradients = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {"outputs": outputs.detach(), "images": images.grad, **gradients}


def test_rows_hold_whole_images_and_a_column_of_zeros_after_each():
    maps = torch.arange(1.0, 1 + 7 * 2 * 3 * 4).view(7, 2, 3, 4)  # six fit into a row
    rows = side_by_side(maps)
    assert rows.shape == (2, 2, 3, 6 * 5)
    for i, image in enumerate(maps):
        row, place = divmod(i, 6)
        assert torch.equal(rows[row, :, :, 5 * place : 5 * place + 4], image)
    assert rows.sum() == maps.sum()  # all else is zeros


@pytest.mark.parametrize(("width", "images"), [(2, 10), (3, 8), (4, 6), (7, 4), (9, 3), (10, 2), (31, 1), (32, 0)])
def test_as_many_images_in_a_row_as_32_positions_hold(width, images):
    assert images_in_a_row(width) == images


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 2), (3, 3), (4, 4), (7, 5), (2, 8), (9, 9)])
@pytest.mark.parametrize("n_images", [1, 6, 13])
def test_gradients_are_those_of_a_convolution(shape, n_images, bias):
    torch.manual_seed(0)
    images = torch.randn(n_images, 4, *shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    weight, offsets = torch.randn(6, 4, 3, 3, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    found = []
    for function in (convolution.SideBySide.apply, lambda x, w, b: F.conv2d(x, w, b, padding=1)):
        inputs = [t.clone().requires_grad_() for t in (images, weight, *([offsets] if bias else []))]
        outputs = function(*inputs, *([] if bias else [None]))
        torch.autograd.backward(
            outputs, torch.linspace(-1, 1, outputs.numel(), dtype=torch.float64).view_as(outputs)
        )
        found.append([outputs, *(t.grad for t in inputs)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [False, True])
def test_in_bf16_it_trains_as_torchs_layer(amx, memory_format, bias):
    theirs, ours = pair(bias)
    for layer in (theirs, ours):
        layer.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch forgot it
    images = torch.randn(20, 16, 4, 4).to(memory_format=memory_format)
    expected, found = run(theirs, images), run(ours, images)
    assert len(amx) == 2 and list(found) == list(expected)
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        difference = (value - expected[name]).abs().max() / expected[name].abs().max()
        assert difference < 2**-7, name  # a digit of bf16


@pytest.mark.parametrize(
    ("case", "size", "arguments"),
    [
        ("wide maps", 10, {}),
        ("stride", 4, {"stride": 2}),
        ("dilation", 4, {"dilation": 2}),
        ("groups", 4, {"groups": 2}),
        ("repeated edges", 4, {"padding_mode": "replicate"}),
    ],
)
def test_other_convolutions_are_left_to_torch(amx, case, size, arguments):
    theirs, ours = pair(**arguments)
    images = torch.randn(5, 16, size, size)
    for ours_value, theirs_value in zip(run(ours, images).values(), run(theirs, images).values(), strict=True):
        assert torch.equal(ours_value, theirs_value), case
    assert not amx


def test_in_fp32_without_gradients_and_with_fixed_weights_torch_computes(amx):
    theirs, ours = pair()
    images = torch.randn(5, 16, 4, 4)
    ours(images).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(images), theirs(images))
    ours.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        ours(images.requires_grad_()).sum().backward()
    assert not amx


def test_without_amx_torch_computes(monkeypatch):
    monkeypatch.setattr(convolution, "HAS_AMX", False)
    theirs, ours = pair()
    images = torch.randn(20, 16, 4, 4)
    for ours_value, theirs_value in zip(run(ours, images).values(), run(theirs, images).values(), strict=True):
        assert torch.equal(ours_value, theirs_value)


@pytest.mark.parametrize(
    ("net", "size", "sides"),
    [
        (SpeedNet(widths=(16, 16, 16)), 32, {7, 3}),
        (ResNet9(), 32, {8, 4}),
        (UNet(width=8, depth=3), 32, {8, 4}),
    ],
)
def test_the_nets_deep_layers_go_this_way(amx, net, size, sides):
    run(net, torch.randn(4, 3, size, size))
    assert {shape[-1] for shape in amx} == sides
