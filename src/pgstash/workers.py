"""Threads that work for the main thread: one in order, or several as they come.

Why not concurrent.futures: a signal raises Interrupted in the main thread at any bytecode. The lock
of a Future is an object of Python, which that exception can leave locked for ever; the threads of a
pool are joined when the process exits, so a store that does not answer would hold it. Here the
threads are daemons, and the main thread shares only simple queues with them: these are written in
C, and a signal cannot interrupt them half-way.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_SECONDS_IDLE = 0.25

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int, eager: bool = True
) -> Generator[Result, None, None]:
    """Yield the result of ``work`` for each item, in the order of the items.

    A thread works on an item while the caller fetches the next ones and uses the last results. At
    most ``ahead`` items are fetched beyond the one whose result is yielded next. If ``eager``, a
    result is yielded as soon as it is ready, and before another item is fetched; otherwise as late
    as ``ahead`` allows. No item is held once the thread is done with it, and no result once it was
    yielded.

    Raises what ``work`` raises, the same object, in place of its result; if an item cannot be
    fetched, an earlier failure of the work comes first. The thread ends when the
    generator ends or is closed, after the items that it was given.
    """
    todo: queue.SimpleQueue[tuple[Item] | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Result] | Exception] = queue.SimpleQueue()
    try:
        threading.Thread(target=_work_in_order, args=(work, todo, done), daemon=True).start()
        waiting = 0
        source = iter(items)
        while True:
            try:
                item = next(source)
            except StopIteration:
                break
            except Exception:
                # A failure of the work on an earlier item comes first.
                for _ in range(waiting):
                    _result(done)
                raise
            todo.put((item,))
            del item
            waiting += 1
            while waiting > ahead or (eager and not done.empty()):
                waiting -= 1
                yield _result(done)
        for _ in range(waiting):
            yield _result(done)
    finally:
        todo.put(None)


def _work_in_order(
    work: Callable[[Item], Result],
    todo: queue.SimpleQueue[tuple[Item] | None],
    done: queue.SimpleQueue[tuple[Result] | Exception],
) -> None:
    while item := todo.get():
        try:
            done.put((work(*item),))
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            done.put(error)
            return
        del item  # it may be large, and the next one long in coming


def _result(done: queue.SimpleQueue[tuple[Result] | Exception]) -> Result:
    outcome = done.get()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome[0]


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last word of a thread of a crew."""

    error: Exception | None


class Crew(Generic[Result]):
    """The crew as each of its tasks sees it."""

    def __init__(self, room: int | None) -> None:
        """Begin without results; at most ``room`` of them wait for the caller, if that is given."""
        self.stopping = False
        self.done: queue.SimpleQueue[Result | _Ended] = queue.SimpleQueue()
        self._room: queue.SimpleQueue[None] | None = None
        if room is not None:
            self._room = queue.SimpleQueue()
            self.make_room(room)

    def hand_over(self, result: Result) -> bool:
        """Give the caller a result, as soon as there is room; return whether to go on."""
        if self._room and not self.stopping:
            self._room.get()
        if self.stopping:
            return False
        self.done.put(result)
        return True

    def make_room(self, count: int = 1) -> None:
        """Let ``count`` more results in."""
        if self._room:
            for _ in range(count):
                self._room.put(None)

    def work(self, task: Callable[[Crew[Result]], None]) -> None:
        """Do one task, in a thread of its own."""
        try:
            if not self.stopping:
                task(self)
            self.done.put(_Ended(None))
        except Exception as error:  # noqa: BLE001 - raised again in the caller's thread
            self.done.put(_Ended(error))


def crew(
    tasks: Sequence[Callable[[Crew[Result]], None]],
    *,
    stop: Callable[[], None],
    seconds_to_end: float,
    room: int | None = None,
    idle: tuple[float, Result] | None = None,
) -> Generator[Result, None, None]:
    """Do each task in a thread of its own, and yield what they hand over, as it comes.

    At most ``room`` results wait for the caller. After ``idle[0]`` seconds without one, ``idle[1]``
    is yielded. The generator ends when all tasks have ended. Raises the first error of a task, the
    same object.

    If the generator ends earlier, by an error or because it is closed, the tasks see it: ``stop``
    is called, to end what they may be waiting for; ``stopping`` is set, and ``hand_over`` returns
    False. In any case the threads are joined, for up to ``seconds_to_end`` together: what they use
    may be closed afterwards. Close the generator explicitly: an exception holds on to it.
    """
    shared: Crew[Result] = Crew(room)
    threads = [threading.Thread(target=shared.work, args=(task,), daemon=True) for task in tasks]
    running = len(threads)
    try:
        for thread in threads:
            thread.start()
        while running:
            try:
                result = shared.done.get(timeout=idle[0] if idle else None)
            except queue.Empty:
                if idle:
                    yield idle[1]
                continue
            if not isinstance(result, _Ended):
                yield result
                shared.make_room()
            elif result.error:
                raise result.error
            else:
                running -= 1
    finally:
        shared.stopping = True
        if running:
            stop()
        shared.make_room(len(threads))
        give_up = time.monotonic() + seconds_to_end
        for thread in threads:
            if thread.is_alive():
                thread.join(max(0.0, give_up - time.monotonic()))


def answers(
    ask: Callable[[Item], Result], questions: Sequence[Item], at_a_time: int = 16
) -> list[Result]:
    """Return the answer to each question, in their order; several are asked at a time.

    Raises the first error, the same object; then no more are asked.
    """
    todo: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    for numbered in enumerate(questions):
        todo.put(numbered)

    def work(crew: Crew[tuple[int, Result] | None]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                number, question = todo.get_nowait()
                if not crew.hand_over((number, ask(question))):
                    return

    found: dict[int, Result] = {}
    tasks = [work] * min(at_a_time, len(questions))
    # The idle main thread wakes up for signals that another thread got.
    asking = crew(tasks, stop=lambda: None, seconds_to_end=0.0, idle=(_SECONDS_IDLE, None))
    with contextlib.closing(asking):
        for each in asking:
            if each is not None:
                found[each[0]] = each[1]
    return [found[number] for number in range(len(questions))]
