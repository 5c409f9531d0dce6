"""Run a script as no launch does, for tasks of the card.

    python -m benchmarks.gpu.altered BACKEND INIT_SCALE SCRIPT [flags of the script]

BACKEND is what processes talk by: NCCL lets no two of them share a GPU, "gloo" does. INIT_SCALE is where fp16's
loss scaling begins: far beyond its range, the first updates overflow and are skipped.
"""

import importlib
import sys
from typing import Any

from accelerate import GradScalerKwargs, InitProcessGroupKwargs

import training.run
from training.cli import run_script
from training.launch import accelerator_handlers


def main() -> None:
    backend, init_scale, name, *flags = sys.argv[1:]
    script = importlib.import_module(name)
    sys.argv = [f"{name}.py", *flags]

    def handlers() -> list[Any]:
        altered = accelerator_handlers()
        for handler in altered:
            if isinstance(handler, InitProcessGroupKwargs) and backend != "default":
                handler.backend = backend
        return [*altered, GradScalerKwargs(init_scale=float(init_scale))]

    training.run.accelerator_handlers = handlers
    run_script(script.main, script.RECIPES, str(script.__doc__))


if __name__ == "__main__":
    main()
