"""pgstash as process 1 of a container: its orphans are reaped, and signals reach it.

The kernel makes process 1 the parent of each process whose parent has died, and a process that has
ended stays a zombie until its parent asks for its status. The program itself cannot ask for all:
it would take the statuses that other parts of it wait for. So it becomes a child of process 1,
which does nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal

_PASSED_ON = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)


def continue_as_child() -> None:
    """Return in a new child. The process itself stays until that has ended, and exits as it did.

    Call it before any thread is started.
    """
    awaited = {*_PASSED_ON, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    child = os.fork()
    if child:
        os._exit(_exit_status(child, awaited))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_status(child: int, awaited: set[signal.Signals]) -> int:
    """Reap all children until this one has ended; return its status as a shell would show it."""
    while True:
        received = signal.sigwaitinfo(awaited).si_signo
        if received in _PASSED_ON:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, received)
            continue
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == child:
                code = os.waitstatus_to_exitcode(ended[1])
                return code if code >= 0 else 128 - code
