"""One task of the card, in a process of its own: `python -m benchmarks.gpu.task NAME OPTIONS RESULT`.

OPTIONS is the JSON of an `Options`; RESULT is a file that the finding is written to, as JSON.
"""

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.card import Finding, Options, Task
from benchmarks.gpu.checks import CHECKS, DEVICE, HOST_TIME
from benchmarks.gpu.runs import EPOCH, RUNS
from benchmarks.gpu.speed import SPEED

CARD = {task.name: task for task in [*CHECKS, *RUNS, HOST_TIME, *SPEED, EPOCH]}


def find(task: Task, options: Options) -> Finding:
    """The task's finding; one that fails is found to fail."""
    if task.needs_cuda and DEVICE.type != "cuda":
        return Finding("needs a GPU")
    try:
        return task.find(options)
    except Exception as error:  # the card goes on, with what went wrong in this line of it
        traceback.print_exc()
        return Finding(f"failed: {type(error).__name__}: {' '.join(str(error).split())[-300:]}", False)


def main() -> None:
    name, options, result = sys.argv[1:]
    given = json.loads(options)
    finding = find(CARD[name], Options(**{**given, "train_files": tuple(given["train_files"])}))
    Path(result).write_text(json.dumps(asdict(finding)))


if __name__ == "__main__":
    main()
