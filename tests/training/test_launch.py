import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch.distributed import TCPStore, rendezvous

from training.errors import UsageError
from training.launch import LONGEST_WAIT, accelerator_handlers, keep_losses_in_fp32, restart_begins_anew
from training.run import open_accelerator


def test_processes_wait_for_hours_and_ddp_copies_neither_buffers_nor_gradients(fresh_accelerate):
    accelerator = open_accelerator()
    assert accelerator.init_handler.timeout == LONGEST_WAIT
    assert not accelerator.ddp_handler.broadcast_buffers and accelerator.ddp_handler.gradient_as_bucket_view


def test_determinism_is_of_a_run_and_not_of_the_next_one(fresh_accelerate, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is as before afterwards
    for deterministic in (True, False):
        open_accelerator(deterministic=deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_fsdp_sums_gradients_in_fp32_and_rounds_no_loss(fresh_accelerate, monkeypatch, precision, dtype):
    monkeypatch.setenv("FSDP_VERSION", "2")
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_mixed_precision(precision)  # as Accelerate does
    assert plugin.mixed_precision_policy.output_dtype == dtype
    accelerator = Accelerator(cpu=True)
    accelerator.state.fsdp_plugin = plugin
    monkeypatch.setattr(Accelerator, "mixed_precision", property(lambda self: precision))
    keep_losses_in_fp32(accelerator)
    assert plugin.mixed_precision_policy.output_dtype == dtype  # not of FSDP
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType.FSDP))
    keep_losses_in_fp32(accelerator)
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (dtype, torch.float32, None)
    assert not policy.cast_forward_inputs  # the shares of label smoothing come in fp32


def test_a_launch_that_would_shard_nothing_is_refused(fresh_accelerate, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UsageError, match="asks for FSDP, but on cpu nothing is sharded"):
        open_accelerator()


def test_deepspeed_that_is_not_installed_is_named(fresh_accelerate, monkeypatch):
    monkeypatch.setattr("training.launch.is_deepspeed_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UsageError, match="pip install deepspeed"):
        open_accelerator()


def test_a_launch_of_several_that_started_one_says_so(fresh_accelerate, monkeypatch, capfd):
    monkeypatch.setenv("MASTER_PORT", "29500")
    open_accelerator()
    assert "started one" not in capfd.readouterr().err  # a shell may have the variable
    fresh_accelerate()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    open_accelerator()
    assert "`accelerate launch` started one" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("precision", "use_cpu", "says"),
    [
        ("fp16", "False", True),
        ("fp16", "", True),
        ("bf16", "False", True),
        ("bf16", "", False),
        ("no", "False", False),
    ],
)
def test_a_launch_for_a_gpu_that_is_not_there_says_so(
    fresh_accelerate, monkeypatch, capfd, precision, use_cpu, says
):
    """An empty `use_cpu` is what a launcher of several processes hands on, for cpu_2proc.yaml too."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    monkeypatch.setenv("ACCELERATE_USE_CPU", use_cpu or "true")
    if not use_cpu:
        monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    open_accelerator()
    assert ("the launch asks for a GPU" in capfd.readouterr().err) == says


@pytest.mark.parametrize(
    ("restarts", "resume", "anew"), [("2", "", True), ("2", "latest", False), ("0", "", False)]
)
def test_a_run_that_would_be_restarted_from_its_beginning_is_warned_of(monkeypatch, restarts, resume, anew):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", restarts)
    assert restart_begins_anew(resume) == anew


def test_processes_that_are_started_again_do_not_meet_those_of_before(monkeypatch):
    """The launcher's store outlives them, with the addresses that they left there."""
    of_the_launcher = TCPStore("127.0.0.1", 0, is_master=True)
    of_the_launcher.set("address", "of one that is gone")
    environment = {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in {**environment, "MASTER_PORT": str(of_the_launcher.port)}.items():
        monkeypatch.setenv(name, value)
    assert accelerator_handlers()[0].init_method is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for _ in range(2):  # as by two runs of one process
        method = accelerator_handlers()[0].init_method
    store, rank, n_processes = next(iter(rendezvous(method, rank=1, world_size=2)))
    assert (rank, n_processes) == (1, 2)
    assert not store.check(["address"])
    store.set("address", "of this attempt")
    assert of_the_launcher.get("address") == b"of one that is gone"
