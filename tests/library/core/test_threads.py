"""Work on tensors in several threads: as in one, in order, and never far ahead of whoever takes the results."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from intraslice.core.threads import map_in_threads, set_threads
from intraslice.slicing import mlp, one_shot

PATIENCE = 30.0  # seconds after which a test fails that would wait for ever


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order_without_gradients(four_threads, workers) -> None:
    weight, seen, together = torch.ones(1, requires_grad=True), set(), threading.Barrier(workers)

    def work(number: int) -> tuple[float, bool]:
        if number < workers:
            together.wait(PATIENCE)
        seen.add(torch.get_num_threads())
        time.sleep(0.002 * (number % 3))
        product = weight * number
        return float(product.detach()), product.requires_grad

    assert map_in_threads(work, zip(range(10)), workers, lambda done: None) == [(float(n), False) for n in range(10)]
    assert seen == {4 // workers}
    assert torch.get_num_threads() == 4


def test_other_threads_keep_their_numbers_while_work_is_paused(four_threads) -> None:
    together = threading.Barrier(2)  # all threads of the work have begun before the first report
    with ThreadPoolExecutor(1, initializer=partial(set_threads, 3)) as earlier, ThreadPoolExecutor(1) as later:
        earlier.submit(int).result()

        def report(done: int) -> None:
            assert earlier.submit(torch.get_num_threads).result() == 3
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 4

        map_in_threads(lambda number: number < 2 and together.wait(PATIENCE), zip(range(3)), 2, report)


def test_workers_have_their_number_however_late_they_begin_and_others_keep_theirs(four_threads, monkeypatch) -> None:
    get, begun = torch.get_num_threads, threading.Barrier(2)

    def get_late() -> int:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3 * begun.wait(PATIENCE))  # the second worker's first, until the work is done
            with ThreadPoolExecutor(1) as another:
                another.submit(torch.set_num_threads, 3).result()
        return get()

    monkeypatch.setattr(torch, "get_num_threads", get_late)
    assert map_in_threads(get, [(), ()], 2, lambda done: None) == [2, 2]
    with ThreadPoolExecutor(1) as later:
        assert later.submit(get).result() == 4


def test_who_pauses_or_leaves_waits_only_for_what_has_begun() -> None:
    begun, ended = [], []

    def work(number: int) -> None:
        begun.append(number)
        time.sleep(0.02)
        ended.append(number)

    def report(done: int) -> None:
        time.sleep(0.2)
        assert len(begun) <= done + 2
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        map_in_threads(work, zip(range(100)), 2, report)
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 4


def test_an_error_comes_in_the_place_of_its_result() -> None:
    reported: list[int] = []
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda number: 1 / number, zip([2, 1, 0, 4]), 2, reported.append)
    assert reported == [1, 2]


def test_layers_that_are_sliced_at_once_are_those_sliced_alone(family_case, four_threads, monkeypatch) -> None:
    threads: set[int] = set()

    def keep_best(*arguments):
        threads.add(threading.get_ident())
        return mlp.keep_best(*arguments)

    monkeypatch.setattr(one_shot, "keep_best", keep_best)
    several = family_case.sliced()
    assert threading.get_ident() not in threads
    torch.set_num_threads(1)
    alone = family_case.sliced()
    assert threading.get_ident() in threads
    torch.testing.assert_close(several.state_dict(), alone.state_dict(), rtol=0, atol=0)
