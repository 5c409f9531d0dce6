import math

import pytest
import torch

from models.segmentation_losses import IGNORE, cross_entropy, dice_loss, loss_of_levels, segmentation_loss

LOSSES = [cross_entropy, dice_loss]


def batch(n_outputs: int, n_images: int = 3, size: tuple[int, int] = (5, 7)) -> tuple[torch.Tensor, torch.Tensor]:
    """Random logits and targets, a fifth of them ignored."""
    generator = torch.Generator().manual_seed(n_outputs)
    logits = 2 * torch.randn(n_images, n_outputs, *size, generator=generator)
    targets = torch.randint(0, max(n_outputs, 2), (n_images, *size), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = IGNORE
    return logits, targets.to(torch.uint8)


def plain(loss, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of each image in fp64, from the definition: only the counted pixels are taken along."""
    values = []
    for image_logits, image_targets in zip(logits.double(), targets.long(), strict=True):
        counted = image_targets != IGNORE
        x, t = image_logits[:, counted], image_targets[counted]  # (K, P), (P,)
        if len(x) == 1:
            p = 1 / (1 + torch.exp(-x[0]))
            if loss is cross_entropy:
                values.append(-torch.where(t == 1, p, 1 - p).log().mean())
                continue
            pairs = [(p, (t == 1).double())]
        else:
            p = x.exp() / x.exp().sum(0)
            if loss is cross_entropy:
                values.append(-p[t, torch.arange(len(t))].log().mean())
                continue
            pairs = [(p[k], (t == k).double()) for k in range(len(x))]
        dice = [(2 * (p @ t) + 1) / (p @ p + t @ t + 1) for p, t in pairs]
        values.append(1 - sum(dice) / len(dice))
    return torch.stack(values)


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_the_definition(loss, n_outputs):
    logits, targets = batch(n_outputs)
    weights = torch.tensor([0.3, 1.0, 2.0])
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    values, expected = loss(ours, targets), plain(loss, theirs, targets)
    assert values.shape == (3,) and values.dtype == torch.float32
    torch.testing.assert_close(values.double(), expected, atol=1e-6, rtol=1e-6)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-7, rtol=1e-5)
    ignored = (targets == IGNORE)[:, None].expand_as(logits)
    assert ignored.any() and ours.grad[ignored].eq(0).all()


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss, n_outputs):
    """The losses compute in fp32: a step of 0.01 stands clear of its rounding."""
    logits, targets = batch(n_outputs, size=(2, 3))
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets).double(), logits, eps=1e-2, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_images_in_half_precision_are_right(loss, n_outputs, dtype):
    """512x512 pixels, and cross-entropies that sum to more than fp16 holds; gradients scaled as a scaler would."""
    logits, targets = batch(n_outputs, n_images=1, size=(512, 512))
    logits = logits.to(dtype)
    scale = 2.0**16
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    with torch.autocast("cpu", dtype):
        values = loss(ours, targets)
    expected = plain(loss, theirs, targets)
    n_counted = int((targets != IGNORE).sum())
    assert values.dtype == torch.float32 and expected.detach() * n_counted > 65_504
    torch.testing.assert_close(values.double(), expected, atol=0, rtol=1e-5)
    (values * scale).sum().backward()
    (expected * scale).sum().backward()
    assert ours.grad.dtype == dtype
    precision = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-6, rtol=precision)


def test_a_probability_of_one_everywhere_sums_to_all_pixels():
    """A foreground that fills 512x512 pixels: the sums are 262,144, four times what fp16 holds."""
    logits = torch.full((1, 1, 512, 512), 20.0, dtype=torch.float16)
    full = torch.ones(1, 512, 512, dtype=torch.uint8)
    half = full.clone()
    half[:, 256:] = 0
    assert float(dice_loss(logits, full)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(logits, half)) == pytest.approx(1 / 3, abs=1e-5)  # 1 - 2 (n / 2) / (n + n / 2)
    assert float(cross_entropy(logits, half)) == pytest.approx(10, abs=1e-4)


@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_an_image_does_not_depend_on_its_batch(loss, n_outputs):
    logits, targets = batch(n_outputs, n_images=7)
    whole = loss(logits, targets)
    for parts in (2, 7):
        split = [loss(*part) for part in zip(logits.chunk(parts), targets.chunk(parts), strict=True)]
        torch.testing.assert_close(torch.cat(split), whole, atol=0, rtol=1e-6)


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_images_without_counted_pixels_cost_nothing(n_outputs, dtype):
    logits = torch.full((2, n_outputs, 4, 4), torch.inf, dtype=dtype)  # not even looked at
    if n_outputs > 1:
        logits = batch(n_outputs, 2, (4, 4))[0].to(dtype)
    logits.requires_grad_()
    values = segmentation_loss(logits, torch.full((2, 4, 4), IGNORE), "bce+dice")
    assert values.tolist() == [0, 0]
    values.sum().backward()
    assert logits.grad.eq(0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_images_without_foreground_ask_for_none(loss):
    targets = torch.zeros(1, 8, 8, dtype=torch.long)
    losses = []
    for logit in (-30.0, -2.0, 0.0, 3.0):
        logits = torch.full((1, 1, 8, 8), logit, requires_grad=True)
        value = loss(logits, targets)
        value.sum().backward()
        assert logits.grad.isfinite().all() and (logits.grad >= 0).all()
        losses.append(float(value.detach()))
    assert losses == sorted(losses) and losses[0] == pytest.approx(0, abs=1e-6) and losses[-1] > 0.9


def test_right_and_certain_predictions_cost_nothing():
    targets = batch(3)[1]
    classes = torch.where(targets == IGNORE, 0, targets).long()
    logits = 100 * torch.nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2).float()
    assert segmentation_loss(logits, targets, "bce+dice").abs().max() < 1e-6
    assert dice_loss(-logits, targets).min() > 0.5
    assert cross_entropy(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.int32)) == pytest.approx(
        math.log(3)
    )


def test_the_kinds_are_the_losses_and_their_sum():
    logits, targets = batch(1)
    bce, dice = cross_entropy(logits, targets), dice_loss(logits, targets)
    assert torch.equal(segmentation_loss(logits, targets, "bce"), bce)
    assert torch.equal(segmentation_loss(logits, targets, "dice"), dice)
    assert torch.equal(segmentation_loss(logits, targets, "bce+dice"), bce + dice)
    with pytest.raises(ValueError, match=r"loss 'focal' is not one of bce, dice, bce\+dice"):
        segmentation_loss(logits, targets, "focal")


@pytest.mark.parametrize("loss", LOSSES)
def test_shapes_that_would_broadcast_are_refused(loss):
    logits, targets = batch(1)
    for wrong in (targets[:1], targets[:, :1], targets[:, None]):
        with pytest.raises(ValueError, match=r"are not \(B, K, H, W\) and \(B, H, W\)"):
            loss(logits, wrong)
    with pytest.raises(ValueError, match="integer class numbers"):
        loss(logits, targets.float())


@pytest.mark.parametrize("kind", ["bce", "dice"])
def test_each_level_has_a_share_of_the_weight_of_the_finer(kind):
    levels, targets = zip(*(batch(1) for _ in range(3)), strict=True)
    logits = torch.stack([logits * (1 + level) for level, logits in enumerate(levels)])
    fine, middle, coarse = (segmentation_loss(level, targets[0], kind) for level in logits)
    found = loss_of_levels(logits, targets[0], kind, 0.5)
    torch.testing.assert_close(found, (4 * fine + 2 * middle + coarse) / 7)
    assert not torch.allclose(found, fine)
    torch.testing.assert_close(loss_of_levels(logits[:1], targets[0], kind, 0.5), fine)
