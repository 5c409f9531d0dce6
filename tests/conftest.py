"""What every test needs: a cache of its own, quiet trackers, few threads, and Accelerate's state made fresh."""

import os

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait make busy machines crawl
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from accelerate_state import fresh_accelerate_state

pytest_plugins = ("browser",)


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
