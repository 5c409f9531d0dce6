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


def pass_of(model: torch.nn.Module, batch: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and running statistics after a training step's two passes."""
    batch = batch.clone().requires_grad_()
    output = model(batch)
    (output**3).sum().backward()
    return {
        "output": output.detach(),
        "input_grad": batch.grad,
        "norm_bias_grad": model[1].bias.grad,
        "filter_grad": model[0].weight.grad,
        **model[1].state_dict(),
    }


def of_a_process(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    mine = images()[:3] if accelerator.process_index == 0 else images()[3:]  # three and four of the seven
    return pass_of(synchronize_batch_norm(net(), torch.device("cpu")), mine)


def test_two_processes_normalise_as_one_on_the_whole_batch(tmp_path):
    first, second = on_processes(2, of_a_process, tmp_path)
    whole = pass_of(net(), images())
    for name in ("output", "input_grad"):
        torch.testing.assert_close(torch.cat([first[name], second[name]]), whole[name], atol=1e-4, rtol=1e-4)
    for name in ("norm_bias_grad", "filter_grad"):
        torch.testing.assert_close(first[name] + second[name], whole[name], atol=1e-3, rtol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(first[name], whole[name])
        torch.testing.assert_close(second[name], whole[name])


def test_only_the_class_of_the_norms_changes():
    model = net()
    before = copy.deepcopy(model.state_dict())
    converted = synchronize_batch_norm(model, torch.device("cpu"))
    assert type(converted[1]) is ProcessBatchNorm2d
    assert not converted[1].weight.requires_grad and converted[1].bias.requires_grad
    assert converted[1].momentum == 0.3
    after = converted.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[k], after[k]) for k in before)
    x = images()
    torch.testing.assert_close(converted.eval()(x), net().eval()(x))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
