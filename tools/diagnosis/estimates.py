"""What each recipe would take here, from the records: times scaled by how fast a small block of a net is trained.

The rates of machines that made records are kept in results/device-rates.json. A record of a machine whose rate is
not known is shown as it is.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from tools.published.catalogue import ROOT, Entry, read_catalogue
from tools.published.tables import read_record
from training.run_folder import write_whole, writing

RATES = Path("results/device-rates.json")
DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
N_TOKENS, D_MODEL, D_FF = 4096, 256, 1024  # of the block: a layer of the Transformers that the records are of
FLOP = 6 * N_TOKENS * 2 * D_MODEL * D_FF  # of a step's matrix products: forward, and twice as many backward
LEAST_SECONDS = 0.5  # that a rate is measured for


@dataclass(frozen=True)
class Rate:
    """How fast a machine trains a feed-forward block."""

    hardware: str  # as the records name it
    threads: int  # of a CPU; of a GPU 0
    mixed_precision: str  # no, fp16 or bf16
    tflops: float  # 1e12 additions and multiplications a second


@dataclass(frozen=True)
class Estimate:
    """What a record says of a recipe, and what follows for this machine."""

    script: str
    recipe: str
    on: str  # the record's hardware and precision
    seconds: float  # of the whole run, there
    seconds_here: float | None  # None where the rate of the record's machine is not known
    memory_mb: float  # at the most: of the process, or of the GPU


def measure_rate(device: torch.device, mixed_precision: str, hardware: str, threads: int = 0) -> Rate:
    """By the fastest of some training steps, in about half a second; `threads` as torch is to have them."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    try:
        step = _training_step(device, mixed_precision)
        step()  # the first chooses its kernels
        durations: list[float] = []
        while sum(durations) < LEAST_SECONDS or len(durations) < 5:
            start = time.perf_counter()
            step()
            durations.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return Rate(hardware, threads, mixed_precision, float(f"{FLOP / min(durations) / 1e12:.3g}"))


def _training_step(device: torch.device, mixed_precision: str) -> Callable[[], None]:
    """A function that trains the block on one batch, and returns when that is done.

    Not a product of large matrices: processors differ more in these than in training what is small.
    """
    layers = (nn.LayerNorm(D_MODEL), nn.Linear(D_MODEL, D_FF), nn.GELU(), nn.Linear(D_FF, D_MODEL))
    block = nn.Sequential(*layers).to(device)
    optimizer = torch.optim.AdamW(block.parameters(), fused=True)
    batch = torch.rand(N_TOKENS, D_MODEL, device=device)
    dtype = DTYPES[mixed_precision]

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = block(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def known_rates(root: Path = ROOT) -> list[Rate]:
    """Those of the machines that made records."""
    path = root / RATES
    return [Rate(**rate) for rate in json.loads(path.read_text(encoding="utf-8"))["rates"]] if path.exists() else []


def keep_rates(rates: Sequence[Rate], root: Path = ROOT) -> Path:
    """Write them into the file of known rates, in the place of older ones of the same kind."""

    def kind(rate: Rate) -> tuple:
        return rate.hardware, rate.threads, rate.mixed_precision

    merged = {kind(rate): rate for rate in [*known_rates(root), *rates]}
    lines = ",\n".join(f" {json.dumps(asdict(merged[key]))}" for key in sorted(merged))
    path = root / RATES
    with writing(path):
        write_whole(path, f'{{"rates": [\n{lines}\n]}}\n')
    return path


def estimates(here: Rate, root: Path = ROOT) -> list[Estimate]:
    """One for each recipe recorded on the same kind of device: of README's run, else of the first listed."""
    known = {(rate.hardware, rate.threads, rate.mixed_precision): rate for rate in known_rates(root)}
    chosen: dict[tuple[str, str], Estimate] = {}
    for entry in sorted(read_catalogue(root), key=lambda entry: not entry.task):  # keeps the order otherwise
        record = read_record(entry.name, root)
        if record is None or (here.threads == 0) != _is_of_gpu(record) or (entry.script, entry.recipe) in chosen:
            continue
        chosen[entry.script, entry.recipe] = _estimate(entry, record, here, known)
    return sorted(chosen.values(), key=lambda estimate: (estimate.script, estimate.seconds))


def _estimate(entry: Entry, record: dict, here: Rate, known: dict[tuple, Rate]) -> Estimate:
    numbers = record["numbers"]
    precision = numbers["mixed_precision"]
    threads = 0 if _is_of_gpu(record) else int(numbers["device"].partition("(")[2].split()[0])
    there = known.get((record["hardware"], threads, precision))
    return Estimate(
        script=entry.script,
        recipe=entry.recipe,
        on=f"{record['hardware']}, {'fp32' if precision == 'no' else precision}",
        seconds=numbers["total_seconds"],
        seconds_here=numbers["total_seconds"] * there.tflops / here.tflops if there else None,
        memory_mb=numbers["peak_memory_mb"],
    )


def _is_of_gpu(record: dict) -> bool:
    return not record["numbers"]["device"].startswith("CPU")
