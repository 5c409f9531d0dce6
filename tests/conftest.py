"""What every test needs: a cache of its own, quiet trackers, few threads, and Accelerate's state made fresh."""

import os
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait make busy machines crawl
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["OMP_NUM_THREADS"] = "1"  # workers fill the cores; and one process sums in the order of each of two

import pytest
from accelerate_state import fresh_accelerate_state

pytest_plugins = ("browser",)


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """`--numprocesses=auto` is one more than the cores: tests wait for processes, files and the clock."""
    return (yield) + ("PYTEST_XDIST_AUTO_NUM_WORKERS" not in os.environ)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers end together: long tests begin, then what trains, file by file; the short ones come last.

    Each worker is given a stretch of the list and takes over from the end of another's once it has done its own:
    that is cheap where tests are short and share no fixtures.
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
    n_workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    stretches = [long[i::n_workers] for i in range(n_workers)]
    for of_file in sorted(training.values(), key=len, reverse=True):
        min(stretches, key=len).extend(of_file)
    n_items, items[:] = len(items), []
    for i, stretch in enumerate(stretches):
        room = max(0, (n_items - len(items)) // (n_workers - i) - len(stretch))
        items += [*stretch, *short[:room]]
        del short[:room]


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
