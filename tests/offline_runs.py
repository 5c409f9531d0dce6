"""Reading back what an offline run of W&B wrote."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


class OfflineRun:
    """What the one `run-<id>.wandb` file below `folder` holds.

    `config`, `history`, `summary`, the names in `metrics` that were defined, the `files` that were saved, and
    `n_system`, how many samples of the system's load were taken.
    """

    def __init__(self, folder: Path):
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.metrics: set[str] = set()
        self.files: set[str] = set()
        self.n_system = 0
        for record in _whole(folder):
            if record.HasField("run"):
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            self.metrics |= {record.metric.name or record.metric.glob_name}
            self.n_system += record.HasField("stats")
            self.files |= {item.path for item in record.files.files}
            if record.HasField("history"):
                self.history.append(_values(record.history.item))
            self.summary |= _values(record.summary.update)


def _values(items: Iterable[Any]) -> dict[str, Any]:
    """By name; what has several values, as a picture has its size and caption, as a dict of them."""
    values: dict[str, Any] = {}
    for item in items:
        name, *within = [item.key] if item.key else item.nested_key
        value = json.loads(item.value_json)
        if within:
            values.setdefault(name, {})[".".join(within)] = value
        else:
            values[name] = value
    return values


def _whole(folder: Path) -> list:
    """The records, once W&B's own process has written the last."""
    deadline = time.time() + 30
    while time.time() < deadline:
        paths = list(folder.rglob("run-*.wandb"))
        assert len(paths) <= 1, f"{folder} holds several runs"
        records = [record for path in paths for record in _records(path)]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.2)
    raise TimeoutError(f"{folder} holds no run that has ended")


def _records(path: Path) -> Iterator[Any]:
    """A LevelDB log, whose blocks hold records whole or in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, block, parts = path.read_bytes(), 7, 32768, b""
    while position + 7 <= len(data):
        if block - position % block < 7:  # too little is left of the block for a header
            position += block - position % block
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        if position + 7 + length > len(data):  # still being written
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
