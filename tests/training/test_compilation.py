import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.compilation import compile_model
from training.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent.parent
TRIES = """
import sys, torch
from training.compilation import compile_model
from training.errors import UsageError
try:
    compile_model(torch.nn.Linear(2, 2), torch.device("cpu"))
except UsageError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["not there", "fails", "makes nothing"])
def test_a_compiler_that_does_not_work_is_told_before_training(tmp_path, compiler):
    fake = tmp_path / "g++"
    if compiler != "not there":
        fake.write_text("#!/bin/sh\n" + {"fails": "echo 'cannot execute cc1plus' >&2; exit 1"}.get(compiler, ""))
        fake.chmod(0o755)
    environment = os.environ | {"CXX": str(fake), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", TRIES], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    *complaints, line = done.stderr.splitlines()
    assert complaints == (["cannot execute cc1plus"] if compiler == "fails" else [])
    assert line.startswith("error: --compile needs a C++ compiler") and "leave --compile out" in line


def test_what_was_compiled_before_does_not_hide_what_is_missing_now(monkeypatch):
    calls = []

    def compile_nothing(function):
        calls.append(function(torch.zeros(2)).tolist())
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function: lambda x: compile_nothing(function))
    for _ in range(2):
        with pytest.raises(UsageError, match="no compiler"):
            compile_model(torch.nn.Linear(2, 2), torch.device("cpu"))
    assert calls[0] != calls[1]
