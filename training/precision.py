"""What the launch's mixed precision ("no", "bf16" or "fp16") means for an optimizer."""

import torch


def fused(mixed_precision: str) -> bool | None:
    """The argument of that name of torch's optimizers: one kernel for all parameters, but not in fp16.

    There it hides from Accelerate that an update was skipped; None lets torch take the next best.
    """
    return None if mixed_precision == "fp16" else True


def product_dtype(mixed_precision: str) -> torch.dtype:
    """What Muon's matrix products are computed in: its iteration tolerates bf16's few digits, not fp16's range."""
    return torch.bfloat16 if mixed_precision == "bf16" else torch.float32
