import os

import psutil
import pytest

from training.cores import usable_cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no `taskset`")
def test_cores_that_are_left_to_others_do_not_count():
    before = os.sched_getaffinity(0)
    assert usable_cores() == min(len(before), psutil.cpu_count(logical=False) or 1)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
