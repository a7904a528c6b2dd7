"""Work that threads do comes back in order, or as it comes; errors come back, and threads end."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from pgstash.workers import Crew, answers, crew, in_order

LONG = 10.0
"""Seconds to wait at most for what takes no time."""


class PlantedError(Exception):
    """One that a test plants."""


@pytest.fixture(autouse=True)
def _threads_end() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until(lambda: set(threading.enumerate()) <= before)


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def fail(number: int) -> int:
    if number == 3:
        raise PlantedError(str(number))
    return -number


def never() -> None:
    raise AssertionError("this crew must not be stopped")


class Counted:
    """Items that know how many of them were fetched."""

    def __init__(self, count: int) -> None:
        self.fetched = 0
        self._count = count

    def __iter__(self) -> Iterator[int]:
        for number in range(self._count):
            self.fetched += 1
            yield number


class TestInOrder:
    @pytest.mark.parametrize("eager", [True, False])
    @pytest.mark.parametrize("ahead", [1, 5, 1000])
    def test_results_come_in_the_order_of_the_items(self, ahead: int, *, eager: bool) -> None:
        def work(number: int) -> int:
            time.sleep(0.002 if number % 7 == 0 else 0)
            return -number

        found = list(in_order(work, range(100), ahead=ahead, eager=eager))
        assert found == [-number for number in range(100)]

    def test_of_no_items_there_are_no_results(self) -> None:
        assert list(in_order(fail, [], ahead=3)) == []

    @pytest.mark.parametrize("eager", [True, False])
    def test_an_error_is_raised_whole_in_the_place_of_its_result(self, *, eager: bool) -> None:
        found: list[int] = []
        with pytest.raises(PlantedError) as caught:
            found.extend(in_order(fail, range(100), ahead=2, eager=eager))
        assert found == [0, -1, -2]
        assert caught.value.args == ("3",)
        assert "fail" in [entry.name for entry in caught.traceback]

    def test_after_an_error_nothing_more_is_done(self) -> None:
        done = []

        def work(number: int) -> None:
            done.append(number)
            fail(number)

        with pytest.raises(PlantedError):
            list(in_order(work, range(10), ahead=100, eager=False))
        assert done == [0, 1, 2, 3]

    def test_an_error_of_the_items_ends_it(self) -> None:
        with pytest.raises(PlantedError):
            list(in_order(abs, map(fail, range(10)), ahead=2))

    def test_closed_early_its_thread_ends(self) -> None:
        items = Counted(1000)
        results = in_order(fail, items, ahead=2, eager=False)
        assert next(results) == 0
        assert threading.active_count() > 1
        results.close()
        assert items.fetched == 3

    def test_forgotten_its_thread_ends(self) -> None:
        results = in_order(fail, range(1000), ahead=2)
        next(results)
        del results
        gc.collect()

    @pytest.mark.parametrize("eager", [True, False])
    @pytest.mark.parametrize("ahead", [1, 4])
    def test_no_more_than_so_many_items_wait(self, ahead: int, *, eager: bool) -> None:
        items = Counted(100)
        begin = threading.Semaphore(0)

        def work(number: int) -> int:
            begin.acquire()
            return number

        results = in_order(work, items, ahead=ahead, eager=eager)
        first: list[int] = []
        caller = threading.Thread(target=lambda: first.append(next(results)), daemon=True)
        caller.start()
        until(lambda: items.fetched == ahead + 1)
        time.sleep(0.05)
        assert items.fetched == ahead + 1
        begin.release(100)
        caller.join(LONG)
        assert first == [0]
        results.close()

    def test_eager_it_yields_what_is_ready_before_it_fetches_more(self) -> None:
        ready = threading.Event()

        def items() -> Iterator[int]:
            yield 0
            ready.wait(LONG)
            time.sleep(0.05)
            yield 1
            raise AssertionError("the first result is ready")

        def work(number: int) -> int:
            ready.set()
            return number

        results = in_order(work, items(), ahead=10)
        assert next(results) == 0
        results.close()

    def test_else_it_yields_as_late_as_it_may(self) -> None:
        items = Counted(10)
        results = in_order(abs, items, ahead=4, eager=False)
        next(results)
        assert items.fetched == 5
        next(results)
        assert items.fetched == 6
        results.close()

    def test_it_holds_no_item_and_no_result_longer_than_it_must(self) -> None:
        class Large:
            pass

        held: list[weakref.ref[Large]] = []

        def fresh() -> Large:
            large = Large()
            held.append(weakref.ref(large))
            return large

        results = in_order(lambda _item: fresh(), (fresh() for _ in range(3)), ahead=1, eager=False)
        result = next(results)
        del result
        # Two items were given to the thread, which is done with both; one result waits.
        until(lambda: sum(ref() is not None for ref in held) == 1)
        results.close()


def hand_over(*numbers: int) -> Callable[[Crew[int]], None]:
    def task(crew: Crew[int]) -> None:
        for number in numbers:
            crew.hand_over(number)

    return task


def plain(tasks: list[Callable[[Crew[int]], None]]) -> list[int]:
    return list(crew(tasks, stop=never, seconds_to_end=LONG))


class TestCrew:
    def test_all_results_of_all_tasks_come(self) -> None:
        tasks = [hand_over(*range(start, start + 100)) for start in range(0, 500, 100)]
        assert sorted(plain(tasks)) == list(range(500))

    def test_without_tasks_there_are_no_results(self) -> None:
        assert plain([]) == []

    def test_with_little_room_they_come_too(self) -> None:
        tasks = [hand_over(*range(start, start + 100)) for start in range(0, 500, 100)]
        results = crew(tasks, stop=never, seconds_to_end=LONG, room=1)
        assert sorted(results) == list(range(500))

    def test_when_it_has_ended_its_threads_have(self) -> None:
        def task(_crew: Crew[int]) -> None:
            time.sleep(0.05)

        before = threading.active_count()
        assert plain([task, task]) == []
        assert threading.active_count() == before

    def test_no_more_results_wait_than_there_is_room_for(self) -> None:
        handed: list[int] = []

        def task(crew: Crew[int]) -> None:
            for number in range(100):
                if not crew.hand_over(number):
                    return
                handed.append(number)

        results = crew([task], stop=lambda: None, seconds_to_end=LONG, room=3)
        assert next(results) == 0
        until(lambda: len(handed) == 3)
        time.sleep(0.05)
        assert len(handed) == 3
        assert next(results) == 1
        until(lambda: len(handed) == 4)
        results.close()
        assert len(handed) == 4

    def test_the_first_error_is_raised_whole_and_ends_all(self) -> None:
        stopped = threading.Event()
        went_on: list[bool] = []

        def waits(crew: Crew[int]) -> None:
            stopped.wait(LONG)
            went_on.append(crew.hand_over(1))
            assert crew.stopping

        def fails(crew: Crew[int]) -> None:
            crew.hand_over(0)
            fail(3)

        found: list[int] = []
        with pytest.raises(PlantedError) as caught:
            found.extend(crew([waits, fails], stop=stopped.set, seconds_to_end=LONG))
        assert found == [0]
        assert went_on == [False]
        assert caught.value.args == ("3",)
        assert "fail" in [entry.name for entry in caught.traceback]

    def test_closed_early_it_stops_and_waits_for_all(self) -> None:
        stopped = threading.Event()
        ended: list[bool] = []

        def task(crew: Crew[int]) -> None:
            crew.hand_over(1)
            stopped.wait(LONG)
            time.sleep(0.05)
            ended.append(crew.stopping)

        with contextlib.closing(
            crew([task, task], stop=stopped.set, seconds_to_end=LONG)
        ) as results:
            assert next(results) == 1
        assert ended == [True, True]

    def test_closed_early_it_frees_those_that_wait_for_room(self) -> None:
        results = crew([hand_over(1, 2, 3)] * 3, stop=lambda: None, seconds_to_end=LONG, room=1)
        next(results)
        began = time.monotonic()
        results.close()
        assert time.monotonic() - began < LONG / 2

    def test_it_does_not_wait_for_ever_for_one_that_does_not_end(self) -> None:
        release = threading.Event()

        def task(crew: Crew[int]) -> None:
            crew.hand_over(1)
            release.wait(LONG)

        results = crew([task], stop=lambda: None, seconds_to_end=0.05)
        next(results)
        began = time.monotonic()
        results.close()
        assert 0.04 < time.monotonic() - began < LONG / 2
        release.set()

    def test_a_task_that_had_not_begun_does_not_begin(self) -> None:
        begun: list[Crew[int]] = []
        shared: Crew[int] = Crew(None)
        shared.stopping = True
        shared.work(begun.append)
        assert begun == []
        assert shared.done.qsize() == 1

    def test_while_nothing_comes_it_says_so(self) -> None:
        release = threading.Event()

        def task(crew: Crew[int]) -> None:
            release.wait(LONG)
            crew.hand_over(7)

        results = crew([task], stop=never, seconds_to_end=LONG, idle=(0.01, 0))
        assert next(results) == 0
        assert next(results) == 0
        release.set()
        assert {*results} - {0} == {7}


def test_an_earlier_failure_of_the_work_comes_before_one_of_the_items() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError

    results = in_order(fail, items(), ahead=5, eager=False)
    with contextlib.closing(results), pytest.raises(PlantedError):
        list(results)


def test_a_failure_of_the_items_is_raised_if_the_work_was_good() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise FileNotFoundError

    results = in_order(fail, items(), ahead=5, eager=False)
    with contextlib.closing(results), pytest.raises(FileNotFoundError):
        list(results)


def test_answers_are_in_the_order_of_the_questions() -> None:
    """Several are asked at a time, and no more than allowed."""
    together, most, running = threading.Barrier(3), 0, 0
    lock = threading.Lock()

    def ask(number: int) -> int:
        nonlocal most, running
        with lock:
            running += 1
            most = max(most, running)
        together.wait(LONG)
        with lock:
            running -= 1
        return number * number

    assert answers(ask, range(9), 3) == [number * number for number in range(9)]
    assert most == 3
    assert answers(ask, []) == []


def test_the_first_error_of_an_answer_is_raised() -> None:
    asked: list[int] = []

    def ask(number: int) -> int:
        asked.append(number)
        return fail(number)

    with pytest.raises(PlantedError, match="3"):
        answers(ask, range(1000), 1)
    assert len(asked) < 1000
