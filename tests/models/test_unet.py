import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.unet import UNet

VARIANTS = list(itertools.product(["maxpool", "strided"], ["transposed", "bilinear"]))


def small_unet(n_outputs: int = 1, **fields) -> UNet:
    torch.manual_seed(0)
    return UNet(3, n_outputs, **({"width": 8, "depth": 2} | fields))


def n_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_it_has_the_parameters_of_the_paper():
    """Counted by hand from the paper's figure 1, with one output and three input channels."""
    channels = [3, 64, 128, 256, 512, 1024]
    encoder = sum(9 * c_in * c + 9 * c * c + 4 * c for c_in, c in itertools.pairwise(channels))  # 4 c: two norms
    up = sum(4 * 2 * c * c + c for c in channels[1:-1])
    decoder = sum(9 * 2 * c * c + 9 * c * c + 4 * c for c in channels[1:-1])
    with torch.device("meta"):
        model = UNet(width=64)
    assert n_parameters(model) == encoder + up + decoder + 64 + 1 == 31_037_633


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_channels_double_up_to_the_widest_level(upsampling):
    model = small_unet(depth=4, max_width=24, upsampling=upsampling)
    assert [block[0][0].out_channels for block in model.encoder] == [8, 16, 24, 24]
    assert model.bottleneck[1][0].out_channels == 24
    assert [block[0][0].in_channels for block in model.decoder] == [48, 48, 32, 16]
    assert model(torch.zeros(2, 3, 37, 50)).shape == (2, 1, 37, 50)
    with pytest.raises(ValueError, match="max_width"):
        small_unet(max_width=4)


@pytest.mark.parametrize(("downsampling", "upsampling"), VARIANTS)
def test_the_forward_pass_is_the_drawn_one(downsampling, upsampling):
    """Against the same network written out with functions, on its own weights, for a size that needs no padding."""
    model = small_unet(2, downsampling=downsampling, upsampling=upsampling).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.normal_(module.bias)
    w = model.state_dict()

    def block(x, prefix, **conv):
        norm = [w[f"{prefix}.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(F.conv2d(x, w[f"{prefix}.0.weight"], **conv), *norm))

    def double(x, prefix):
        return block(block(x, f"{prefix}.0", padding=1), f"{prefix}.1", padding=1)

    def down(x, prefix):
        return F.max_pool2d(x, 2) if downsampling == "maxpool" else block(x, prefix, stride=2)

    def up(x, prefix):
        if upsampling == "transposed":
            return F.conv_transpose2d(x, w[f"{prefix}.weight"], w[f"{prefix}.bias"], stride=2)
        x = F.interpolate(x, size=[2 * side for side in x.shape[2:]], mode="bilinear", align_corners=False)
        return F.conv2d(x, w[f"{prefix}.1.weight"], w[f"{prefix}.1.bias"], padding=1)

    images = torch.randn(2, 3, 12, 20)
    fine = double(images, "encoder.0")
    middle = double(down(fine, "downsample.0"), "encoder.1")
    coarse = double(down(middle, "downsample.1"), "bottleneck")
    middle = double(torch.cat([middle, up(coarse, "upsample.0")], 1), "decoder.0")
    fine = double(torch.cat([fine, up(middle, "upsample.1")], 1), "decoder.1")
    expected = F.conv2d(fine, w["head.weight"], w["head.bias"])
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group", "instance", "none"])
@pytest.mark.parametrize(("downsampling", "upsampling"), VARIANTS)
def test_any_size_comes_back(downsampling, upsampling, norm):
    model = small_unet(3, downsampling=downsampling, upsampling=upsampling, norm=norm, depth=3)
    for size in [(97, 131), (1, 1), (1, 40), (8, 8), (5, 9)]:
        for training in (True, False):
            logits = model.train(training)(torch.randn(1, 3, *size))  # of one image: batch norm needs positions
            assert logits.shape == (1, 3, *size) and logits.isfinite().all()


def test_an_odd_size_is_that_of_the_image_with_its_edges_repeated():
    model = small_unet().eval()
    images = torch.randn(1, 3, 5, 7)
    rows = torch.tensor([0, *range(5), 4, 4])  # 5 + 3: one before, two behind
    columns = torch.tensor([*range(7), 6])
    padded = images[:, :, rows][..., columns]
    torch.testing.assert_close(model(images), model(padded)[..., 1:6, :7])


def test_every_pixel_and_every_parameter_matters():
    for (downsampling, upsampling), norm in itertools.product(VARIANTS, ["batch", "none"]):
        model = small_unet(downsampling=downsampling, upsampling=upsampling, norm=norm)
        images = torch.randn(2, 3, 13, 17, requires_grad=True)
        model(images).square().sum().backward()
        assert (images.grad.abs().amax(1) > 0).all()
        assert all(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_activations_keep_their_scale_without_norms(upsampling):
    """Twenty layers with torch's default variance, a sixth, would shrink them by orders of magnitude."""
    model = small_unet(width=32, depth=4, downsampling="strided", upsampling=upsampling, norm="none")
    scales = []
    for block in [*model.encoder, model.bottleneck, *model.decoder]:
        block.register_forward_hook(lambda module, args, x: scales.append(float(x.square().mean().sqrt())))
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 64, 64))
    assert all(0.2 < scale < 5 for scale in scales), scales
    assert logits.abs().max() < 1


def test_no_convolution_before_a_norm_has_a_bias():
    for norm in ("batch", "group", "instance", "none"):
        model = small_unet(norm=norm, downsampling="strided")
        biases = [block[0].bias is not None for block in model.modules() if type(block).__name__ == "ConvBlock"]
        assert biases == [norm == "none"] * 12


def test_dropout_zeroes_whole_channels_at_the_bottleneck_in_training_only():
    model = small_unet(dropout=0.5)
    seen = []
    model.dropout.register_forward_hook(lambda module, args, x: seen.append((args[0], x)))
    images = torch.randn(4, 3, 16, 16)
    model.train()(images)
    model.eval()(images)
    (before, after), (kept_before, kept_after) = seen
    assert before.shape == (4, 32, 4, 4)
    dropped = (after == 0).all((2, 3))
    assert 0.3 < dropped.float().mean() < 0.7
    torch.testing.assert_close(after[~dropped], 2 * before[~dropped])
    assert torch.equal(kept_before, kept_after)


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_channels_last_and_bf16_change_the_rounding_alone(upsampling, norm):
    model = small_unet(upsampling=upsampling, norm=norm, downsampling="strided").eval()
    nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 21, 18)
    expected = model(images)
    model = model.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(images), expected, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().max() < 0.05 * expected.abs().max()
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("downsampling", "upsampling"), VARIANTS)
def test_it_is_one_graph_for_the_compiler(downsampling, upsampling):
    model = small_unet(downsampling=downsampling, upsampling=upsampling, dropout=0.1).eval()
    images = torch.randn(1, 3, 9, 11)
    compiled = torch.compile(model, backend="eager", fullgraph=True)  # traced, and not lowered: that takes a minute
    assert torch.equal(compiled(images), model(images))


def test_a_residual_encoder_has_a_way_around_every_two_convolutions():
    """Against the first level and the bottleneck written out with functions, on their own weights."""
    model = small_unet(encoder="residual", encoder_blocks=2, depth=1)
    w = model.state_dict()

    def conv_and_norm(x, conv, norm, padding):
        x = F.conv2d(x, w[f"{conv}.weight"], padding=padding)
        return F.batch_norm(x, None, None, w[f"{norm}.weight"], w[f"{norm}.bias"], training=True)

    def block(x, prefix, has_shortcut):
        h = conv_and_norm(x, f"{prefix}.conv1.0", f"{prefix}.conv1.1", 1).relu()
        h = conv_and_norm(h, f"{prefix}.conv2.0", f"{prefix}.conv2.1", 1)
        shortcut = conv_and_norm(x, f"{prefix}.shortcut.0", f"{prefix}.shortcut.1", 0) if has_shortcut else x
        return (h + shortcut).relu()

    seen = {}
    for name in ("encoder", "bottleneck"):
        module = getattr(model, name)
        level = module[0] if name == "encoder" else module
        level.register_forward_hook(lambda module, args, x, name=name: seen.setdefault(name, x))
    images = torch.randn(2, 3, 8, 8)
    model(images)
    first = block(block(images, "encoder.0.0", True), "encoder.0.1", False)
    torch.testing.assert_close(seen["encoder"], first, atol=1e-5, rtol=1e-5)
    coarse = block(block(F.max_pool2d(first, 2), "bottleneck.0", True), "bottleneck.1", False)
    torch.testing.assert_close(seen["bottleneck"], coarse, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["plain", "residual"])
def test_every_parameter_of_a_deeply_supervised_net_matters(encoder):
    model = small_unet(2, encoder=encoder, encoder_blocks=2, depth=3, deep_supervision=True)
    images = torch.randn(2, 3, 13, 17)
    logits = model(images)
    assert logits.shape == (3, 2, 2, 13, 17)
    logits.square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


def test_deep_supervision_adds_heads_and_changes_nothing_else():
    plain, deep = small_unet(depth=3), small_unet(depth=3, deep_supervision=True)
    added = deep.state_dict().keys() - plain.state_dict().keys()
    assert {name.partition(".")[0] for name in added} == {"level_heads"} and len(deep.level_heads) == 2
    assert all(torch.equal(value, deep.state_dict()[name]) for name, value in plain.state_dict().items())
    images = torch.randn(2, 3, 24, 16)
    assert torch.equal(deep(images)[0], plain(images))  # in training
    assert torch.equal(deep.eval()(images), plain.eval()(images))
    nn.init.ones_(deep.level_heads[0].weight)
    nn.init.zeros_(deep.level_heads[1].weight)
    states = []
    deep.decoder[0].register_forward_hook(lambda module, args, x: states.append(x))
    finest, middle, coarsest = deep.train()(images)
    expected = F.interpolate(states[0].sum(1, keepdim=True), (24, 16), mode="bilinear")
    torch.testing.assert_close(coarsest, expected)
    assert (middle == 0).all() and finest.std() > 0
    assert small_unet(depth=1, deep_supervision=True)(images).shape == (1, 2, 1, 24, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "dense"}, "encoder 'dense' is not one of plain, residual"),
        ({"encoder": "residual", "norm": "none"}, "residual encoder needs norms"),
        ({"encoder_blocks": 0}, "encoder_blocks of 0"),
        ({"depth": 0}, "depth of 0"),
        ({"width": 0}, "width of 0"),
        ({"in_channels": 0}, "in_channels of 0"),
        ({"n_outputs": -1}, "n_outputs of -1"),
        ({"downsampling": "average"}, "downsampling 'average' is not one of maxpool, strided"),
        ({"upsampling": "nearest"}, "upsampling 'nearest' is not one of transposed, bilinear"),
        ({"norm": "layer"}, "norm 'layer' is not one of batch, group, instance, none"),
        ({"norm": "group", "width": 12}, "width 12 is not a multiple of 8"),
        ({"dropout": 1.0}, "dropout of 1.0"),
        ({"dropout": -0.1}, "dropout of -0.1"),
    ],
)
def test_impossible_arguments_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UNet(**({"width": 8, "depth": 2} | fields))
