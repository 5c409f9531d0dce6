"""Results that are slow to compute, kept on disk under a hash of what they are computed from.

The cache is only a saving: a damaged entry is made anew, and where the folder can be neither read nor written
a run does without it. One line on stderr then says so.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from data.errors import DataError

_PIECE = 1 << 24  # bytes that are read at a time to check them
T = TypeVar("T")
Built = TypeVar("Built")


def cache_dir() -> Path:
    """`$ONECYCLE_CACHE`, else `~/.cache/onecycle`. Raises DataError where there is no home folder to begin at."""
    named = os.environ.get("ONECYCLE_CACHE") or "~/.cache/onecycle"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise DataError(f"no home folder for the cache {named}: set ONECYCLE_CACHE to a folder") from error


def writable_cache_dir(needs_bytes: int) -> Path:
    """`cache_dir()`, or a temporary folder of this user where that one has no room for so much.

    For what has to lie on disk somewhere, such as a downloaded file. All processes of a machine get the same
    folder. Raises DataError if there is no room in the temporary folder either.
    """
    problems = []
    for folder in (cache_dir, temporary_dir):
        try:
            path = folder()
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
            free = shutil.disk_usage(path).free
            if free < needs_bytes:
                raise DataError(f"{path} has {free >> 20} MiB free, {needs_bytes >> 20} are needed")
        except (OSError, DataError) as error:
            problems.append(_reason(error))
            continue
        if problems:
            _say_once(f"the cache cannot be used ({problems[0]}): {path} takes its place")
        return path
    raise DataError(f"{'; '.join(problems)}: set ONECYCLE_CACHE to a folder that has room")


def temporary_dir() -> Path:
    """A folder of this user's below the system's temporary one. Raises DataError or OSError if there is none."""
    path = Path(tempfile.gettempdir()) / f"onecycle-{os.getuid()}"
    path.mkdir(exist_ok=True, mode=0o700)
    if path.stat().st_uid != os.getuid():  # anyone may make a folder there
        raise DataError(f"{path} is another user's")
    return path


def content_key(settings: dict, parts: Iterable[str | bytes | np.ndarray]) -> str:
    """A hash of everything that a cached result depends on, parts in their order: 32 hex digits."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for part in parts:
        digest.update(
            part.encode() if isinstance(part, str) else part.data if isinstance(part, np.ndarray) else part
        )
        digest.update(b"\n")
    return digest.hexdigest()


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Other processes see the whole file or none, also when several write the same one at once.

    So does what comes after a power cut: the content is on the disk before the name is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp" + path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cached_text(key: str, build: Callable[[], str], parse: Callable[[str], T]) -> T:
    """`parse` of the string stored under `key`, which is built and stored on the first call.

    A string for which `parse` raises an error is damaged, like one whose checksum differs.
    """

    def read(path: Path) -> T:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if hashlib.sha256(entry["text"].encode()).hexdigest() != entry["sha256"]:
            raise ValueError("its checksum differs")
        return parse(entry["text"])

    def write(path: Path, text: str) -> None:
        entry = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "text": text}
        path.write_text(json.dumps(entry), encoding="utf-8")

    return _cached(f"{key}.json", read, build, write, parse)


def cached_arrays(
    key: str, names: Sequence[str], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The named arrays stored under `key`, built and stored on the first call.

    What comes from the cache is mapped into memory: it is read as it is asked for, and all processes of a machine
    share it. Writing into such an array changes a copy of this process's alone.
    """

    def read(path: Path) -> dict[str, np.ndarray]:
        return {name: _mapped(path, name) for name in names}

    def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
        with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in arrays.items():
                with archive.open(_aligned_member(name, file.tell()), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)

    return _cached(f"{key}.npz", read, build, write, lambda arrays: arrays)


_ALIGNMENT = 64  # bytes: of an array in its file, so that it can be used where it lies
_LOCAL_HEADER = 30  # bytes of a zip member's header, without its name and its extra fields
_ZIP64_FIELD = 20
_PADDING_FIELD = b"\x35\xd9"  # as Android's zipalign marks it: any reader passes over it


def _aligned_member(name: str, place: int) -> zipfile.ZipInfo:
    """A member of an .npz file, to be written at `place`, whose content begins at a multiple of _ALIGNMENT."""
    member = zipfile.ZipInfo(f"{name}.npy")
    begin = place + _LOCAL_HEADER + len(member.filename.encode()) + _ZIP64_FIELD + 4
    n_padding = -begin % _ALIGNMENT
    member.extra = _PADDING_FIELD + n_padding.to_bytes(2, "little") + bytes(n_padding)
    return member


def _mapped(path: Path, name: str) -> np.ndarray:
    """An array of an uncompressed .npz file, mapped into memory once its checksum was found right."""
    with zipfile.ZipFile(path) as file:
        member = file.getinfo(f"{name}.npy")
        with file.open(member) as content:
            version = np.lib.format.read_magic(content)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = read_header(content)
            n_header = content.tell()
            if dtype.hasobject or fortran_order or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is no plain array")
            while content.read(_PIECE):  # at the end the checksum is compared
                pass
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    n_names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = member.header_offset + _LOCAL_HEADER + n_names + n_header
    if 0 in (math.prod(shape), len(shape)):  # nothing to be mapped, or a single number
        with np.load(path) as arrays:
            return arrays[name]
    mapped = np.asarray(np.memmap(path, dtype, mode="c", offset=offset, shape=shape))
    return mapped if mapped.flags.aligned else mapped.copy()


def _cached(
    name: str,
    read: Callable[[Path], T],
    build: Callable[[], Built],
    write: Callable[[Path, Built], None],
    finish: Callable[[Built], T],
) -> T:
    """What `read` makes of the file `name` in the cache, or `finish` of what is built and written there."""
    try:
        path = cache_dir() / name
    except DataError as error:
        _say_once(f"no cache is used ({_reason(error)})")
        return finish(build())
    try:
        return read(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        _say_once(f"the cache cannot be read ({_reason(error)}): set ONECYCLE_CACHE to a folder of your own")
    except Exception as error:  # what a damaged file makes json, zipfile, numpy and `parse` raise
        _say_once(
            f"the cache's {path} is damaged ({_reason(error)}): made anew; ONECYCLE_CACHE names another cache"
        )
    built = build()
    try:
        replace_atomically(path, lambda temporary: write(temporary, built))
        return read(path)  # as other processes have it: arrays are mapped from now on
    except OSError as error:
        _say_once(
            f"nothing can be kept in the cache ({_reason(error)}): the run does without; "
            "set ONECYCLE_CACHE to a folder that can be written"
        )
    return finish(built)


_said = False


def _say_once(warning: str) -> None:
    """A line on stderr, the first time: a cache that cannot be used fails for every entry alike."""
    global _said
    if not _said and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    _said = True


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or cache_dir()}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
