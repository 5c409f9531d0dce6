"""Results that are slow to compute, kept on disk under a hash of what they are computed from."""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np


def cache_dir() -> Path:
    """`$ONECYCLE_CACHE`, else `~/.cache/onecycle`."""
    return Path(os.environ.get("ONECYCLE_CACHE") or Path.home() / ".cache" / "onecycle")


def content_key(settings: dict, parts: Iterable[str | bytes]) -> str:
    """A hash of everything that a cached result depends on, parts in their order: 32 hex digits."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\n")
    return digest.hexdigest()


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Other processes see the whole file or none, also when several write the same one at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp" + path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cached_text(key: str, build: Callable[[], str]) -> str:
    """The string stored under `key`, built and stored on the first call."""
    path = cache_dir() / f"{key}.json"
    if not path.exists():
        text = build()
        replace_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path.read_text(encoding="utf-8")


def cached_arrays(
    key: str, names: Sequence[str], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The named arrays stored under `key`, built and stored on the first call; a damaged file is rebuilt."""
    path = cache_dir() / f"{key}.npz"
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return {name: arrays[name] for name in names}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
    arrays = build()
    replace_atomically(path, lambda p: np.savez(p, **arrays))
    return arrays
