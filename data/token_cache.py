"""Tokenised text as flat arrays, and an on-disk cache of them under a content hash."""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class TokenizedText:
    """N sentences in one array: sentence i is `tokens[offsets[i] : offsets[i + 1]]` (no special tokens)."""

    tokens: np.ndarray  # (total,) int32
    offsets: np.ndarray  # (N + 1,) int64

    @classmethod
    def from_lists(cls, sentences: Sequence[Sequence[int]]) -> "TokenizedText":
        offsets = np.zeros(len(sentences) + 1, dtype=np.int64)
        np.cumsum([len(s) for s in sentences], out=offsets[1:])
        tokens = np.fromiter((t for s in sentences for t in s), dtype=np.int32, count=int(offsets[-1]))
        return cls(tokens, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, without BOS and EOS: (N,)."""
        return np.diff(self.offsets)

    def select(self, indices: np.ndarray) -> "TokenizedText":
        return TokenizedText.from_lists([self[int(i)] for i in indices])


def cache_dir() -> Path:
    """`$ONECYCLE_CACHE`, else `~/.cache/onecycle`."""
    return Path(os.environ.get("ONECYCLE_CACHE") or Path.home() / ".cache" / "onecycle")


def content_key(settings: dict, texts: Iterable[str]) -> str:
    """A hash of everything that a cached result depends on: 32 hex digits."""
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
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
        _replace_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path.read_text(encoding="utf-8")


def cached_tokens(key: str, build: Callable[[], Sequence[Sequence[int]]]) -> TokenizedText:
    """The token arrays stored under `key`, built and stored on the first call; a damaged file is rebuilt."""
    path = cache_dir() / f"{key}.npz"
    if path.exists():
        try:
            with np.load(path) as arrays:
                return TokenizedText(arrays["tokens"], arrays["offsets"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
    text = TokenizedText.from_lists(build())
    _replace_atomically(path, lambda p: np.savez(p, tokens=text.tokens, offsets=text.offsets))
    return text
