"""Two real processes train as one does: the example for many hosts, on the loopback."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "many_hosts.py"


def start(folder, devices, *arguments):
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, str(EXAMPLE), "--output", str(folder / "picture.png"), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def outcome(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def figures(output):
    processes, devices, first, last, right = re.search(
        r"(\d+) process\(es\), (\d+) device\(s\): .* from ([\d.]+) to ([\d.]+), ([\d.]+)%", output
    ).groups()
    return int(processes), int(devices), [float(first), float(last)], float(right)


def test_two_processes_train_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    pair = [
        start(tmp_path, 2, "--coordinator", address, "--processes", "2", "--process", str(process))
        for process in (0, 1)
    ]
    first, _ = [outcome(process) for process in pair]
    together = figures(first)
    alone = figures(outcome(start(tmp_path, 1)))
    assert (together[0], together[1], alone[0], alone[1]) == (2, 4, 1, 1)
    assert together[2] == pytest.approx(alone[2], rel=1e-4)
    assert together[3] == pytest.approx(alone[3], abs=0.2)
    assert alone[2][1] < 0.8 * alone[2][0]
    assert (tmp_path / "picture.png").stat().st_size > 10_000
