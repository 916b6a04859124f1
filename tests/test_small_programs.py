"""No shape, composition or type makes a compiler hang or abort: random programs in a process that may be ended."""

import os
import subprocess
import sys

import pytest

COUNT = 100 if "CI" in os.environ else 20


@pytest.mark.parametrize("seed", [0, 1])
def test_random_small_programs(seed):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
    command = [sys.executable, "-m", "tests.small_programs", str(COUNT), str(seed)]
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"hangs at {late.stdout.decode().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout.decode()[-2000:]
