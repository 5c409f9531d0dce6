"""Checks of single parts of the scripts on the device, each with its expected answer."""

import os
import statistics
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.card import Finding, Options, Task

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ACTIVITIES = [torch.profiler.ProfilerActivity.CPU]
if DEVICE.type == "cuda":
    ACTIVITIES.append(torch.profiler.ProfilerActivity.CUDA)


def lstm_calculates_in_bf16(options: Options) -> Finding:
    """cuDNN's LSTM casts to fp16 under any autocast; and it copies weights that are not of one piece."""
    from models.lstm_kernel import kernel_weights, run_lstm

    torch.manual_seed(0)
    width, n_hidden, n_rows, n_steps = 48, 32, 8, 16
    shapes = [(4 * n_hidden, width), (4 * n_hidden, n_hidden), (4 * n_hidden,), (4 * n_hidden,)] * 2
    weights = [nn.Parameter(0.1 * torch.randn(shape, device=DEVICE)) for shape in shapes]
    x = torch.randn(n_rows, n_steps, width, device=DEVICE)
    zeros = torch.zeros(2, n_rows, n_hidden, device=DEVICE)

    def outputs() -> Tensor:
        return run_lstm(x, (zeros, zeros), kernel_weights(weights), training=True, bidirectional=True)[0]

    exact = outputs().detach()
    with warnings.catch_warnings(record=True) as caught, torch.autocast(DEVICE.type, torch.bfloat16):
        warnings.simplefilter("always")
        low = outputs()
        low.float().square().mean().backward()
    told = [str(warning.message).splitlines()[0] for warning in caught if "contiguous" in str(warning.message)]
    off = float((low.detach().float() - exact).abs().max() / exact.abs().max())
    finite = all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in weights)
    dtype = str(low.dtype).removeprefix("torch.")
    return Finding(
        f"{dtype}, {off:.4f} off fp32, {len(told)} warnings of copied weights",
        low.dtype == torch.bfloat16 and off < 0.02 and not told and finite,
        {"dtype": dtype, "relative_error": off, "warnings": told},
    )


def gradient_sums_keep_their_range(options: Options) -> Finding:
    """The gradient of the output projection is a sum over all tokens: for one word it passes fp16's range."""
    from models.linear_cross_entropy import linear_cross_entropy

    n_tokens, width, n_words = (2_000, 16, 50) if options.tiny else (100_000, 256, 4_000)
    size = 40.0 if options.tiny else 1.0  # so that few tokens pass the range too
    states = torch.full((n_tokens, width), size, device=DEVICE, requires_grad=True)
    weight = torch.zeros(n_words, width, device=DEVICE, requires_grad=True)
    labels = torch.ones(n_tokens, dtype=torch.int64, device=DEVICE)
    with torch.autocast(DEVICE.type, torch.float16):
        linear_cross_entropy(states, weight, labels)[0].backward()
    expected = -n_tokens * size * (1 - 1 / n_words)
    assert weight.grad is not None
    off = abs(float(weight.grad[1, 0]) / expected - 1)
    return Finding(
        f"{float(weight.grad[1, 0]):,.0f} where {expected:,.0f} is right",
        bool(weight.grad.isfinite().all()) and off < 1e-2,
        {"relative_error": off, "n_tokens": n_tokens},
    )


def muon_takes_matrices_together(options: Options) -> Finding:
    """A GPU orthogonalizes matrices of one shape in the same kernels; a CPU takes one after the other."""
    from training.muon import MuonAdamW

    def kernels(n_matrices: int) -> int:
        matrices = [nn.Parameter(torch.randn(32, 64, device=DEVICE)) for _ in range(n_matrices)]
        optimizer = MuonAdamW([{"params": matrices, "orthogonal": True}], lr=1e-3)
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        optimizer.step()
        with torch.profiler.profile(activities=ACTIVITIES) as profile:
            optimizer.step()
            torch.cuda.synchronize()
        return _launches(profile)

    one, twelve = kernels(1), kernels(12)
    return Finding(
        f"{one} kernels for one matrix, {twelve} for twelve",
        twelve < 6 * one,
        {"kernels_of_one": one, "kernels_of_twelve": twelve},
    )


def _launches(profile: torch.profiler.profile) -> int:
    """Kernels that the host gave to the GPU."""
    launched = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
    return sum(event.name.startswith(launched) for event in profile.events() or [])


def batch_norm_spans_processes(options: Options) -> Finding:
    """Our own batch norm on two processes against torch's on the whole batch: outputs, gradients, buffers."""
    context = torch.multiprocessing.get_context("spawn")
    meeting = options.made("batch-norm") / f"meeting-{os.getpid()}"
    ends = []
    for rank in range(2):
        ours, theirs = context.Pipe()
        context.Process(target=_normalise_a_half, args=(theirs, rank, str(meeting)), daemon=True).start()
        ends.append(ours)
    halves = [{name: torch.from_numpy(part) for name, part in end.recv().items()} for end in ends]
    x, cotangent = _batch()
    norm = nn.BatchNorm2d(16).to(DEVICE)
    x.requires_grad_()
    y = norm(x)
    (y * cotangent).sum().backward()
    assert norm.running_var is not None and x.grad is not None
    apart = {
        "outputs": _difference(torch.cat([half["y"] for half in halves]), y),
        "gradients": _difference(torch.cat([half["x_grad"] for half in halves]), x.grad),
        "variances": max(_difference(half["running_var"], norm.running_var) for half in halves),
        "ranks": _difference(halves[0]["running_var"], halves[1]["running_var"]),
    }
    largest = max(apart.values())
    return Finding(f"at most {largest:.1e} apart, ranks {apart['ranks']:.0e}", largest < 1e-4, apart)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(10, 16, 8, 8, generator=generator) + 1
    return x.to(DEVICE), torch.randn(10, 16, 8, 8, generator=generator).to(DEVICE)


def _normalise_a_half(connection: Connection, rank: int, meeting: str) -> None:
    from models.batch_norm import ProcessBatchNorm2d

    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.manual_seed(0)
    norm = ProcessBatchNorm2d(16).to(DEVICE)
    share = slice(0, 6) if rank == 0 else slice(6, 10)  # unequal ones
    x, cotangent = (whole[share].clone() for whole in _batch())
    x.requires_grad_()
    y = norm(x)
    (y * cotangent).sum().backward()
    assert x.grad is not None
    parts = {"y": y, "x_grad": x.grad, "running_var": norm.running_var}
    connection.send({name: part.detach().cpu().numpy() for name, part in parts.items()})
    torch.distributed.barrier()
    os._exit(0)  # no destructor waits for the other process


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.detach().cpu() - b.detach().cpu()).abs().max())


def updates_never_wait(options: Options) -> Finding:
    """Whether the host waits for the GPU in an update of each script, the loop around it included."""
    waited = {}
    for name, run in _tiny_runs().items():
        try:
            run(
                {
                    3: lambda: torch.cuda.set_sync_debug_mode("error"),
                    6: lambda: torch.cuda.set_sync_debug_mode("default"),
                }
            )
        except RuntimeError as error:
            torch.cuda.set_sync_debug_mode("default")
            waited[name] = _where(error)
    told = "; ".join(f"{name}: {where}" for name, where in waited.items())
    return Finding(told or "none waits", not waited, {"waits": waited})


def _where(error: BaseException) -> str:
    """The innermost line of the project's own in the traceback."""
    lines = []
    trace = error.__traceback__
    while trace:
        path = trace.tb_frame.f_code.co_filename
        if "site-packages" not in path and "/lib/" not in path:
            lines.append(f"{os.path.basename(path)}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{lines[-1] if lines else 'torch'} ({str(error).splitlines()[0][:80]})"


def updates_of_small_models(options: Options) -> Finding:
    """Kernels and milliseconds of an update of models so small that the host alone decides: what it costs."""
    first, n_updates = (3, 2) if options.tiny else (5, 20)
    numbers: dict[str, dict[str, float]] = {}
    for name, run in _tiny_runs().items():
        laps: list[float] = []
        profile = torch.profiler.profile(activities=ACTIVITIES)

        def lap(laps: list[float] = laps) -> None:
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            laps.append(time.perf_counter())

        start = first + n_updates
        run({first: lap, start: lap, start + 1: profile.start, start + 3: profile.stop})
        events = profile.events() or []
        numbers[name] = {
            "milliseconds": round(1e3 * (laps[1] - laps[0]) / n_updates, 2),
            "launches": _launches(profile) / 2,
            "graph_launches": sum(event.name == "cudaGraphLaunch" for event in events) / 2,
        }
    median = statistics.median(value["milliseconds"] for value in numbers.values())
    slowest = max(numbers, key=lambda name: numbers[name]["milliseconds"])
    operation = 1e6 * _seconds_of_an_operation()
    numbers["one operation"] = {"microseconds": round(operation, 2)}
    return Finding(
        f"{operation:.1f} us an operation, median {median:.1f} ms an update; slowest {slowest}: "
        f"{numbers[slowest]['milliseconds']:.1f} ms, {numbers[slowest]['launches']:.0f} launches",
        None,
        numbers,
    )


def _seconds_of_an_operation(times: int = 5000) -> float:
    """What the host takes for the least that it can ask of the device."""
    x = torch.zeros(1, device=DEVICE)
    laps = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(times):
            x.add_(1.0)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        laps.append((time.perf_counter() - started) / times)
    return min(laps)


def _tiny_runs() -> dict[str, Any]:
    """By name: a function that trains a tiny model in bf16, with something done before updates of given numbers."""
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    from benchmarks.host_time import TINY, train_some_updates

    return {
        name: lambda actions, script=script, recipe=recipe, settings=settings: train_some_updates(
            script, recipe, settings, actions
        )
        for name, (script, recipe, settings) in TINY.items()
    }


CHECKS = [
    Task("LSTM in bf16", "bfloat16, no warning of copied weights", lstm_calculates_in_bf16),
    Task("sums over 100,000 tokens in fp16", "finite, right to 1 %", gradient_sums_keep_their_range),
    Task(
        "Muon on twelve matrices",
        "below one set of kernels a matrix",
        muon_takes_matrices_together,
        needs_cuda=True,
    ),
    Task("batch norm on two processes", "as one process on the whole batch", batch_norm_spans_processes),
    Task("waits of an update", "none", updates_never_wait, needs_cuda=True),
]
HOST_TIME = Task("host time of small models", "kept on record", updates_of_small_models, timed=True)
