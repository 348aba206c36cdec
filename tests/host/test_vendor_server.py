"""What runs other people's kernels: one that is given up takes all of its processes with it."""

from __future__ import annotations

import os
import time

from tests.vendor.server import end_of, fork


def test_a_kernel_that_is_given_up_leaves_no_process() -> None:
    """The emulator forks to run a grid's clusters."""
    reading, writing = os.pipe()
    child = fork()
    if not child:
        os.fork()
        time.sleep(60)  # both hold the pipe open
        os._exit(0)
    os.close(writing)
    assert end_of(child, 0.5) == "late"
    os.set_blocking(reading, False)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            assert os.read(reading, 1) == b""  # closed by everybody
            return
        except BlockingIOError:
            time.sleep(0.05)
    raise AssertionError("a process is left")


def test_a_kernel_that_ends_says_how() -> None:
    for status in (0, 3):
        child = fork()
        if not child:
            os._exit(status)
        assert end_of(child, 60) == str(status)
