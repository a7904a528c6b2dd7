"""What was measured of a command that ran several times."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass, field


@dataclass
class Runs:
    """What was measured of one command: seconds of wall and of CPU, bytes of memory."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def add(self, command: list[str], env: dict[str, str]) -> None:
        """Run the command once."""
        started = time.monotonic()
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} failed with status {process.returncode}")
        self.wall.append(time.monotonic() - started)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.memory = max(self.memory, usage.ru_maxrss * 1024)


def report(measured: dict[str, Runs], least: str) -> None:
    """Print medians, and their ratio to that of the run of this name; then every single time."""
    floor = statistics.median(measured[least].wall)
    print(f"{'':34}{'wall':>8}{'ratio':>8}{'CPU':>8}{'memory':>10}")
    for name, runs in measured.items():
        wall = statistics.median(runs.wall)
        cpu = statistics.median(runs.cpu)
        mib = runs.memory / 1024 / 1024
        print(f"{name:34}{wall:7.2f}s{wall / floor:8.2f}{cpu:7.2f}s{mib:7.0f}MiB")
    for name, runs in measured.items():
        print(f"{name}: {' '.join(f'{wall:.2f}' for wall in runs.wall)}")
