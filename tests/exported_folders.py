"""What folders that were exported for the hub answer where they are all that there is."""

import importlib
import json
import os
import sys
from pathlib import Path

from forked_runs import ForkedProcesses


def answers_of_folder_alone(folder: Path, package: str, *call: object) -> list:
    """What the folder's package answers to `from_pretrained(folder)(*call)`: in JSON, tensors by their means.

    In a process that has nothing of the project on its path.
    """
    started = ForkedProcesses(_print_answers, [(str(folder), package, call)], [dict(os.environ)], cwd=folder)
    out, err = started.communicate()
    assert started.returncode == 0, err
    return json.loads(out)


def _print_answers(folder: str, package: str, call: tuple) -> None:
    sys.path[:] = [folder, *(path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix)))]
    answers = importlib.import_module(package).from_pretrained(folder)(*call)
    print(json.dumps([float(answer.float().mean()) if hasattr(answer, "mean") else answer for answer in answers]))
    assert not {"models", "data", "tools", "training"} & sys.modules.keys()
