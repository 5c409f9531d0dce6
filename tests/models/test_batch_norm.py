import copy

import pytest
import torch
from accelerate import Accelerator
from two_processes import on_processes

from models.batch_norm import ProcessBatchNorm2d, synchronize_batch_norm


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    norm = torch.nn.BatchNorm2d(4, momentum=0.3)
    norm.weight.data.uniform_(0.5, 2)
    norm.weight.requires_grad_(False)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), norm, torch.nn.ReLU())


def images() -> torch.Tensor:
    return 3 + torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def pass_of(model: torch.nn.Module, batch: torch.Tensor, bf16: bool) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics after a training step's two passes."""
    batch = batch.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(batch)
    assert output.dtype == (torch.bfloat16 if bf16 else torch.float32)
    (output.float() ** 3).sum().backward()
    return {
        "output": output.detach(),
        "input_grad": batch.grad,
        "norm_bias_grad": model[1].bias.grad,
        "filter_grad": model[0].weight.grad,
        **model[1].state_dict(),
    }


def of_a_process(accelerator: Accelerator) -> dict[bool, dict[str, torch.Tensor]]:
    """In fp32 and in bf16."""
    mine = images()[:3] if accelerator.process_index == 0 else images()[3:]  # three and four of the seven
    found = {}
    for bf16 in (False, True):
        model = net()
        synchronize_batch_norm(model)
        found[bf16] = pass_of(model, mine, bf16)
    return found


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> list[dict[bool, dict[str, torch.Tensor]]]:
    """What each of two processes found."""
    return on_processes(2, of_a_process, tmp_path_factory.mktemp("two"))


def joined(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the whole batch, from the halves of two processes; the statistics must be equal in both."""
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(first[name], second[name])
    parts = {name: torch.cat([first[name], second[name]]) for name in ("output", "input_grad")}
    return {**first, **parts, **{name: first[name] + second[name] for name in ("norm_bias_grad", "filter_grad")}}


def test_two_processes_normalise_as_one_on_the_whole_batch(of_two):
    whole, found = pass_of(net(), images(), bf16=False), joined(*(found[False] for found in of_two))
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], atol=1e-3, rtol=1e-4)


def test_under_autocast_they_are_as_near_to_fp32_as_torchs_batch_norm(of_two):
    exact = pass_of(net(), images(), bf16=False)
    torchs, ours = pass_of(net(), images(), bf16=True), joined(*(found[True] for found in of_two))
    for name in ("output", "input_grad", "norm_bias_grad", "filter_grad", "running_mean", "running_var"):
        error, torchs_error = ((found[name].float() - exact[name]).norm() for found in (ours, torchs))
        assert error <= 1.5 * torchs_error + 1e-3, name  # two processes round a filter's gradient twice


def test_only_the_class_of_the_norms_changes():
    model = net()
    before = copy.deepcopy(model.state_dict())
    synchronize_batch_norm(model)
    assert type(model[1]) is ProcessBatchNorm2d
    assert not model[1].weight.requires_grad and model[1].bias.requires_grad
    assert model[1].momentum == 0.3
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    x = images()
    torch.testing.assert_close(model.eval()(x), net().eval()(x))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
