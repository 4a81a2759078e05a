"""How processes meet and share: sums, rows in order, decisions, and what is said where one of them diverges."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from itertools import chain

import pytest
import torch

from intraslice.core.errors import UserError
from intraslice.distributed import launch, sharing
from intraslice.distributed.launch import process_group
from intraslice.distributed.sharing import (
    all_gather,
    all_reduce_,
    broadcast,
    is_main_process,
    rank,
    require_agreement,
    require_enough,
    shard_of,
    single_process,
    size,
)


def test_a_process_by_itself_has_all_the_work():
    rows, values = torch.arange(3.0), [4, 5]
    all_reduce_(rows)
    with process_group("cpu"), single_process():
        assert (size(), rank(), is_main_process()) == (1, 0, True)
        assert range(7)[shard_of(7)] == range(7)
    assert rows.tolist() == [0, 1, 2]
    assert all_gather(values) == values
    assert broadcast(values) is values
    require_agreement("text", "digest")
    require_enough(1)


@pytest.mark.parametrize(("count", "unit"), [(0, 1), (2, 1), (5, 1), (16, 1), (17, 4), (13, 4), (12, 4), (3, 512)])
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_shares_in_order_are_all_there_is(count, unit, processes, monkeypatch):
    monkeypatch.setattr(sharing, "size", lambda: processes)
    shares = []
    for turn in range(processes):
        monkeypatch.setattr(sharing, "rank", lambda turn=turn: turn)
        shares.append(list(range(count))[shard_of(count, unit)])
    assert list(chain(*shares)) == list(range(count))
    filled = [share for share in shares if share]
    assert len(filled) == min(processes, count)
    assert max(map(len, filled), default=0) - min(map(len, filled), default=0) <= 2 * unit - 1
    if -(-count // unit) >= processes:
        assert all(share[0] % unit == 0 for share in filled)


def test_three_processes_add_gather_and_decide_alike(together):
    def work() -> dict:
        moments = [torch.full((2, 2), 10.0 ** rank(), dtype=torch.float64), torch.empty(0, 0), torch.ones(3) * rank()]
        all_reduce_(*moments)
        with single_process():
            by_oneself = (size(), rank(), is_main_process(), all_gather([1]))
            all_reduce_(own := torch.ones(1))
        return {
            "rank": rank(),
            "speaks": is_main_process(),
            "moments": [moment.flatten().tolist() for moment in moments],
            "rows": all_gather([(rank(), row) for row in range(rank())]),
            "first": broadcast({"rank": rank()}),
            "alone": (by_oneself, own.item()),
        }

    answers = together(3, work)
    assert [answer["rank"] for answer in answers] == [0, 1, 2]
    assert [answer["speaks"] for answer in answers] == [True, False, False]
    for answer in answers:
        assert answer["moments"] == [[111.0] * 4, [], [3.0] * 3]
        assert answer["rows"] == [(1, 0), (2, 0), (2, 1)]
        assert answer["first"] == {"rank": 0}
        assert answer["alone"] == ((1, 0, answer["speaks"], [1]), 1.0)


def test_processes_with_other_text_are_refused_in_all(together):
    answers = together(3, lambda: require_agreement("text", "one" if rank() < 2 else "other"))
    assert all(isinstance(answer, UserError) and "same text" in str(answer) for answer in answers)
    assert together(2, lambda: require_agreement("text", "one")) == [None, None]


def test_too_few_sequences_are_refused(together):
    answers = together(2, lambda: [require_enough(2), require_enough(1)])
    assert all("sequences must be at least 2, one for each process, got 1" in str(answer) for answer in answers)


@pytest.mark.parametrize("culprit", [0, 1])
def test_nobody_waits_for_one_that_stopped(together, culprit):
    def work() -> list[int]:
        all_gather([])  # all have met
        if rank() == culprit:
            raise UserError("no such text")
        return all_gather([rank()])

    answers = together(3, work)
    assert str(answers.pop(culprit)) == "no such text"
    parts = ("lost its connection to the other processes", "start all of them again")
    assert all(part in str(answer) for answer in answers for part in parts)


def test_who_is_done_waits_for_all_to_be(together):
    def work() -> str:
        all_gather([])  # all have met
        if rank() == 0:
            time.sleep(0.5)
            raise UserError("the disk is full")
        return "done"

    assert all("lost its connection to the other processes" in str(answer) for answer in together(3, work)[1:])


def test_nobody_waits_for_ever_for_one_that_hangs(together, monkeypatch):
    monkeypatch.setattr(launch, "TIMEOUT", timedelta(seconds=8))  # they have to meet within it, too
    stopped = multiprocessing.get_context("fork").Event()

    def work() -> None:
        if rank() == 1:
            stopped.wait(60)  # were the other to wait for longer, both would go on
        try:
            all_reduce_(torch.ones(3))
        finally:
            stopped.set()

    assert all("lost its connection to the other processes" in str(answer) for answer in together(2, work))


@pytest.mark.parametrize(
    ("environment", "device", "named"),
    [
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE must be a whole number, got 'two'"),
        ({"WORLD_SIZE": "2"}, "cpu", "2 processes cannot connect"),
        ({"WORLD_SIZE": "2"}, "cuda:1", "must be cpu or cuda"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "64"}, "cuda", "GPU"),
    ],
)
def test_what_torchrun_would_not_do_is_named(environment, device, named, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught, process_group(device):
        pass
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
