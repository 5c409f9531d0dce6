"""What every test needs: a cache of its own, quiet trackers, few threads, and Accelerate's state made fresh."""

import os
import signal

os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ["WANDB_MODE"] = "offline"
os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin while they wait make busy machines crawl
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest

pytest_plugins = ("browser",)


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    os.environ["ONECYCLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def fresh_accelerate():
    """Runs in one test process would share Accelerate's singletons; and a run takes the signals over."""
    from accelerate.state import AcceleratorState, GradientState

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield reset
    reset()
    for number, handler in handlers.items():
        signal.signal(number, handler)
