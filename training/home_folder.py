"""Home folders that cannot be written, as in containers and on clusters' nodes."""

import os
from pathlib import Path

from data.cache import temporary_dir
from data.errors import DataError

_FOLDERS_BELOW_HOME = ("", ".config", ".cache", ".local/share")
# What matplotlib and W&B write below the home folder, and what moves it elsewhere.
_VARIABLES = ("MPLCONFIGDIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")


def spare_a_read_only_home() -> None:
    """Where the home folder cannot be written, have matplotlib and W&B keep their things in a temporary one.

    They would say so in a dozen lines, and W&B would fail at the first table. Variables that are set stay.
    """
    if _home_can_be_written():
        return
    try:
        folder = str(temporary_dir())
    except (OSError, DataError):  # then these programs say themselves what they lack
        return
    for name in _VARIABLES:
        os.environ.setdefault(name, folder)


def _home_can_be_written() -> bool:
    try:
        home = Path.home()
    except RuntimeError:
        return False
    folders = [home / name for name in _FOLDERS_BELOW_HOME]
    return home.exists() and all(os.access(folder, os.W_OK) for folder in folders if folder.exists())
