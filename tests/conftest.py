"""What every test needs: a cache of its own, quiet trackers, few threads, and Accelerate's state made fresh."""

import os
from pathlib import Path

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait make busy machines crawl
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # a worker a core; and one process sums in the order that each of two does

import pytest
from accelerate_state import fresh_accelerate_state

pytest_plugins = ("browser",)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers end together: long tests begin, then what trains, file by file; the short ones come last.

    Each worker is given a stretch of the list and takes over from the end of another's once it has done its own:
    that is cheap where tests are short and share no fixtures. Here the stretches are those of two workers.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    training: dict[Path, list[pytest.Item]] = {}
    long, short = [], []
    for item in items:
        if item.get_closest_marker("long"):
            long.append(item)
        elif item.get_closest_marker("training") or item.get_closest_marker("slow"):
            training.setdefault(item.path, []).append(item)
        else:
            short.append(item)
    first, second = long[0::2], long[1::2]
    for of_file in sorted(training.values(), key=len, reverse=True):
        min(first, second, key=len).extend(of_file)
    n_short = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *short[:n_short], *second, *short[n_short:]]


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    os.environ["ONECYCLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def fresh_accelerate():
    """A function that makes Accelerate's state fresh; it is, before and after the test."""
    with fresh_accelerate_state() as reset:
        yield reset


@pytest.fixture
def blank_figures(request, monkeypatch):
    """Runs in this process leave their figures blank, unless the test is marked `figures`."""
    if request.node.get_closest_marker("figures") is None:
        from blank_figures import save_blank
        from matplotlib.figure import Figure

        monkeypatch.setattr(Figure, "savefig", save_blank)
