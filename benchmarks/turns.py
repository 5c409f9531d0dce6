"""Variants of a training loop that take turns, each in a process of its own, and the ratios of their speeds.

A slow moment of the machine then hits all alike, and the ratios of a round are compared, not times from
different moments.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a worker sets its precision before torch and Accelerate are imported
    import torch

Speeds = dict[str, list[float]]  # of each variant, a round's examples per second


def serve_turns(connection: Connection, ready: dict[str, Any], train_for: Callable[[float], float]) -> None:
    """A worker's part: report `ready`, then answer each number of seconds with `train_for(seconds)`, its speed."""
    connection.send(ready)
    while seconds := connection.recv():
        connection.send(train_for(seconds))


def set_precision(variant: dict[str, Any], mixed: str) -> None:
    """What Accelerate is to take for `variant`, where it is "mixed" the precision of that name.

    It reads it once: before it is imported.
    """
    precision = variant["precision"]
    os.environ["ACCELERATE_MIXED_PRECISION"] = mixed if precision == "mixed" else precision


def set_backends_of(variant: dict[str, Any]) -> None:
    """Of a GPU: a variant with "plain" takes torch's own defaults, without TF32 in matrix products."""
    if variant.get("plain"):
        import torch

        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False


def compile_as(variant: dict[str, Any], model: "torch.nn.Module") -> None:
    """Have `model` compiled where `variant` says so; "graphs": each pass as one CUDA graph."""
    if variant.get("compile"):
        model.compile(mode="reduce-overhead" if variant["compile"] == "graphs" else None)


def speed_over(seconds: float, update: Callable[[], int], device: "torch.device") -> float:
    """Examples a second of calling `update`, which trains on some and returns how many; two calls or more.

    A GPU is waited for now and then, so that the host does not run ahead of the clock.
    """
    import torch

    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    started, n_examples, done = time.perf_counter(), 0, 0
    while time.perf_counter() - started < seconds or done < 2:
        n_examples += update()
        done += 1
        if done % 20 == 0:
            synchronize()
    synchronize()
    return n_examples / (time.perf_counter() - started)


def load_of_device(
    variant: dict[str, Any], update: Callable[[], int], device: "torch.device", n_updates: int = 5
) -> dict[str, float]:
    """Of calls of `update`, on a GPU: milliseconds each, kernels each, and the share of the time that they fill.

    Where the share is small, the host is what is waited for. Nothing without a GPU, or "load" in the variant.
    """
    import torch
    from torch.autograd import DeviceType

    if device.type != "cuda" or not variant.get("load"):
        return {}
    update()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(n_updates):
        update()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(n_updates):
            update()
        torch.cuda.synchronize()
    kernels = [event for event in profile.events() or [] if event.device_type == DeviceType.CUDA]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return {
        "milliseconds": 1e3 * seconds / n_updates,
        "kernels": len(kernels) / n_updates,
        "device_busy": busy / seconds,
    }


def take_turns(
    worker: Callable, config: Any, variants: dict[str, Any], rounds: int, seconds: float, at_once: bool = False
) -> tuple[Speeds, dict[str, dict]]:
    """Start `worker(connection, config, variant)` for each variant and let them train in turns.

    Returns the speeds, and what each worker reported when it was ready. A worker ends in `serve_turns`. They get
    ready one after the other, so that the times of their warm-ups can be compared; all `at_once` is sooner done.
    """
    connections, ready, _ = _start(worker, config, variants, at_once)
    speeds: Speeds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, connection in connections.items():
            connection.send(seconds)
            speeds[name].append(connection.recv())
    for connection in connections.values():
        connection.send(0.0)
    return speeds, ready


def take_turns_to_the_end(
    worker: Callable, config: Any, variants: dict[str, Any], seconds: float
) -> dict[str, dict[str, Any]]:
    """Likewise, until each variant's training has come to its own end; returns what each reported then.

    A worker sends anything when it is ready. It gets `seconds` for its turn and sends None after it, or, where its
    training ended in it, what is to be reported.
    """
    connections, _, processes = _start(worker, config, variants)
    reports: dict[str, dict[str, Any]] = {}
    while len(reports) < len(variants):
        for name, connection in connections.items():
            if name not in reports:
                connection.send(seconds)
                if (report := connection.recv()) is not None:
                    reports[name] = report
    for process in processes:  # else they would be ended while they tidy up
        process.join()
    return {name: reports[name] for name in variants}


def _start(
    worker: Callable, config: Any, variants: dict[str, Any], at_once: bool = False
) -> tuple[dict[str, Connection], dict[str, Any], list[BaseProcess]]:
    """A process for each variant: our ends of their connections, what they sent when they were ready, and they."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    ready = {}
    processes: list[BaseProcess] = []
    for name, variant in variants.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, config, variant), daemon=True)
        process.start()
        processes.append(process)
        theirs.close()
        connections[name] = ours
        if not at_once:
            ready[name] = ours.recv()
    for name, connection in connections.items():
        if at_once:
            ready[name] = connection.recv()
    return connections, ready, processes


def ratios(speeds: Speeds, name: str, to: str) -> list[float]:
    """The speed of variant `name` as a multiple of that of variant `to`, round by round."""
    return [a / b for a, b in zip(speeds[name], speeds[to], strict=True)]


def ratio_text(speeds: Speeds, name: str, to: str) -> str:
    """The median ratio, and the least and the greatest."""
    values = ratios(speeds, name, to)
    return f"{statistics.median(values):7.2f} ({min(values):.2f}-{max(values):.2f})"
