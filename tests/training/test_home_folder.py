import os

import pytest

import training.home_folder
from training.home_folder import spare_a_read_only_home

VARIABLES = ("MPLCONFIGDIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")


@pytest.fixture
def variables(monkeypatch):
    """The variables, unset, and as they were after the test."""
    monkeypatch.setattr(os, "environ", {"MPLCONFIGDIR": "/mine", "HOME": os.environ["HOME"]})
    return lambda: [os.environ.get(name) for name in VARIABLES]


def test_a_home_that_can_be_written_is_used(variables, monkeypatch, tmp_path):
    os.environ["HOME"] = str(tmp_path)
    spare_a_read_only_home()
    assert variables() == ["/mine", None, None, None]


@pytest.mark.parametrize("refused", ["", ".config"])
def test_else_a_temporary_folder_is_unless_the_user_named_one(variables, monkeypatch, tmp_path, refused):
    (tmp_path / ".config").mkdir()
    monkeypatch.setattr(training.home_folder.os, "access", lambda path, mode: path != tmp_path / refused)
    os.environ["HOME"] = str(tmp_path)
    spare_a_read_only_home()
    mine, *others = variables()
    assert mine == "/mine" and len(set(others)) == 1
    assert os.path.isdir(others[0])


def test_a_home_that_does_not_exist_is_none(variables, monkeypatch, tmp_path):
    os.environ["HOME"] = str(tmp_path / "absent")
    spare_a_read_only_home()
    assert None not in variables()
