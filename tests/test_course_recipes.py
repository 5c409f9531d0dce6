"""The recipes that do what the course projects did: their rates, their optimizer, and what they leave out."""

import pytest
import torch

import train_cifar
import train_cvae
import train_translation
import train_unet

SCRIPTS = (train_cifar, train_cvae, train_translation, train_unet)
COURSE = [(script, name) for script in SCRIPTS for name in script.RECIPES if name.endswith("-course")]


def rates(script, name: str, n: int) -> list[float]:
    """Of the updates of a run of `n`."""
    _, config = script.RECIPES[name]
    return [script.learning_rate(config, step, n) for step in range(n)]


@pytest.mark.parametrize("script, name", COURSE)
def test_a_course_recipe_has_a_recipe_of_today_beside_it_and_averages_nothing(script, name):
    _, config = script.RECIPES[name]
    assert name.removesuffix("-course") in script.RECIPES
    assert config.recipe == name and config.ema_decay == 0 and config.max_grad_norm == 0


@pytest.mark.parametrize(
    "script, name, rate",
    [
        (train_translation, "opus-en-it-course", 1e-4),
        (train_cvae, "mnist-course", 1e-3),
        (train_cvae, "cifar10-course", 1e-3),
        *((train_unet, f"{variant}-course", 1e-3) for variant in train_unet.VARIANTS),
    ],
)
def test_a_plain_loop_has_one_rate(script, name, rate):
    assert set(rates(script, name, 50)) == {rate}


def test_one_cycle_of_the_courses():
    of_resnet = rates(train_cifar, "resnet-course", 2400)
    assert of_resnet[0] == pytest.approx(5.54e-4) and max(of_resnet) == pytest.approx(5.54e-2)
    assert of_resnet.index(max(of_resnet)) == pytest.approx(2400 * 5 / 24, abs=1)
    assert of_resnet[250] == pytest.approx((of_resnet[0] + max(of_resnet)) / 2, rel=0.01)  # linear
    assert of_resnet[-1] == pytest.approx(5.54e-6)
    of_ultimus = rates(train_cifar, "ultimus-course", 1000)
    assert max(of_ultimus) == pytest.approx(0.02)
    of_translation = rates(train_translation, "opus-en-fr-course", 1000)
    assert of_translation[0] == pytest.approx(1e-5) and of_translation.index(max(of_translation)) in (298, 299, 300)
    assert of_translation[-1] == pytest.approx(1e-7)


def test_adam_of_the_courses_is_torchs_with_its_own_decays():
    _, config = train_cifar.RECIPES["resnet-course"]
    optimizer = train_cifar.build_optimizer(train_cifar.build_model(config, 10), config, "no")
    assert type(optimizer) is torch.optim.Adam
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4, 0.0]
