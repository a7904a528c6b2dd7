"""What was measured of a command that ran several times."""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass, field

# A small process starts the command: the kernel counts what its parent held before the exec.
_MEASURE = """
import os, sys, time
started = time.monotonic()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(pid, 0)
print(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass
class Runs:
    """What was measured of one command: seconds of wall and of CPU, bytes of memory."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def add(self, command: list[str], env: dict[str, str]) -> None:
        """Run the command once."""
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MEASURE, *command],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{command[0]} failed with status {done.returncode}")
        wall, cpu, memory = done.stdout.split()
        self.wall.append(float(wall))
        self.cpu.append(float(cpu))
        self.memory = max(self.memory, int(memory))


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
