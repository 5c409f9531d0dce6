"""A model in shards on two processes, as FSDP2 has it: its precision, and the average of its weights."""

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from two_processes import on_processes

from training.ema import EMA
from training.launch import fsdp_precision


class Net(nn.Module):
    """Sizes that two do not divide; (B, 7) -> the sum of a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": (100 + self.last(self.first(x).tanh()).float()).sum()}


def in_shards(accelerator: Accelerator) -> dict:
    model = Net()
    ema = EMA(model, decay=0.9)
    mesh = init_device_mesh("cpu", (2,))
    for module in (model.first, model.last, model):
        fully_shard(module, mesh=mesh, mp_policy=fsdp_precision("bf16"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    averages = [p.full_tensor().clone() for p in model.parameters()]
    losses, gradient_dtypes, communications = [], set(), 0
    for n in range(4):
        loss = model(torch.randn(6, 7, generator=torch.Generator().manual_seed(n)))["loss"]
        loss.backward()
        gradient_dtypes |= {p.grad.dtype for p in model.parameters()}
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        with CommDebugMode() as counted:
            ema.update(model)
        communications += counted.get_total_counts()
        decay = min(0.9, (1 + n) / (10 + n)) if n else 0.0
        with torch.no_grad():
            averages = [
                decay * a + (1 - decay) * p.full_tensor() for a, p in zip(averages, model.parameters(), strict=True)
            ]
        if n == 1:  # as at a checkpoint, and on from it
            ema.gather()
            state = {name: value.clone() for name, value in ema.state_dict().items()}
            ema = EMA(Net(), decay=0.9)
            ema.load_state_dict(state)
    ema.gather()
    return {
        "losses": torch.stack(losses),
        "gradient_dtypes": gradient_dtypes,
        "communications": communications,
        "averages": averages,
        "gathered": [p.detach() for p in ema.module.parameters()],
    }


def test_losses_and_gradients_stay_fp32_and_the_average_is_of_shards_until_it_is_gathered(tmp_path):
    for found in on_processes(2, in_shards, tmp_path):
        assert found["losses"].dtype == torch.float32
        assert not torch.equal(found["losses"], found["losses"].bfloat16().float())
        assert found["gradient_dtypes"] == {torch.float32}
        assert found["communications"] == 0
        for gathered, average in zip(found["gathered"], found["averages"], strict=True):
            torch.testing.assert_close(gathered, average)
