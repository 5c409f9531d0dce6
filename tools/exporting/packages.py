"""Packages beyond requirements.txt, which some exports want."""

import importlib.util

from training.errors import UsageError


def require_packages(flag: str, *names: str) -> None:
    """Raise UsageError, with the command that installs them, where some that `flag` wants are missing."""
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        packages = "packages" if len(missing) > 1 else "package"
        raise UsageError(f"{flag} needs the {packages} {', '.join(missing)}: pip install {' '.join(missing)}")
