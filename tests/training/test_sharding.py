"""A model in shards on two processes, as FSDP2 has it: its precision, the average of its weights, whole runs."""

import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from test_accelerate_configs import merged_arguments
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode
from two_processes import on_processes

from benchmarks.made_corpus import write_made_corpus
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
        x = torch.randn(6, 7, generator=torch.Generator().manual_seed(n))
        loss = model(x.bfloat16())["loss"]
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


def small_run(accelerator: Accelerator, sharded: bool, folder: Path, resume: str) -> list[float]:
    """The losses that a run of the translator logs, by the launch file for FSDP or without it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    if sharded:
        launched = prepare_multi_gpu_env(merged_arguments("fsdp", "--main_process_port", "0"))
        os.environ |= {key: value for key, value in launched.items() if "FSDP" in key}
        take_processors_for_gpus()
    from train_translation import RECIPES, main

    main(
        replace(
            RECIPES["demo"][1],
            train_files=write_made_corpus(folder.parent, 400, mean_words=5),
            d_model=32,
            d_ff=32,
            n_heads=2,
            vocab_size=400,
            max_tokens=512,
            valid_sentences=8,
            max_train_steps=6,
            checkpointing_steps=3,
            validate_every=6,
            log_every=1,
            ema_decay=0.9,
            final_test=False,
            tracker="none",
            resume=resume,
            output_dir=str(folder),
        )
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def take_processors_for_gpus() -> None:
    """Let Accelerate shard on CPUs too, where it would leave the model whole."""
    opened = PartialState.__init__

    def open_as_gpus(self, cpu: bool = False, **kwargs):
        is_first = not self.initialized
        opened(self, cpu, **kwargs)
        if is_first:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = open_as_gpus


@pytest.mark.slow
def test_a_run_in_shards_trains_as_one_that_is_whole_and_is_resumed(tmp_path):
    write_made_corpus(tmp_path, 400, mean_words=5)  # before two processes would at once

    def run(name: str, resume: str = "") -> list[float]:
        results = tmp_path / f"results-{name}-{resume}"
        results.mkdir()
        work = partial(small_run, sharded=name == "sharded", folder=tmp_path / name, resume=resume)
        return on_processes(2, work, results)[0]

    sharded = run("sharded")
    assert sharded == pytest.approx(run("whole"), rel=2e-3)  # between the layers there is bf16
    shutil.rmtree(tmp_path / "sharded" / "checkpoints" / "checkpoint-6")
    assert run("sharded", resume="latest") == sharded
