"""The scheduler on toy jobs: an oracle says who runs; and what clients who wait are told of the order of turns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import product, zip_longest
from random import Random
from typing import Any

import pytest
from stepping import Clock, Failed, Panic, Stepped, counting

from components import limits
from components.jobs import job as job_module
from components.jobs import round_robin
from components.jobs.job import Caller, Job, Urgency
from components.jobs.jobs import Jobs
from components.jobs.status import Status
from components.jobs.waiting import Line, Waiting
from components.limits import BEGINNING_SECONDS, SHARE

ADDRESSES = {"ada": "127.0.0.2", "bob": "127.0.0.2", "cyd": "127.0.0.2", "eve": "127.0.0.3", "hidden": ""}
KEYS = ("model", "calibration", "slice")  # of shared work, which shares only what comes before it
FEW, TURN, LONG_TURN = 2, 0.25, 2.0  # all sums of seconds are exact
Path = tuple[Any, ...]


@dataclass(eq=False)
class Actor:
    """A job, or shared work, which has no client.

    Its program is a list of steps: ("take", seconds), ("share", key), ("urgency", urgency), ("result", None), ("fail",
    error).
    """

    name: str
    program: list[tuple[str, Any]]
    client: str = ""
    urgency: Urgency = Urgency.PEOPLE
    limit: float = math.inf
    place: int = 0  # in the program
    seconds: float = 0.0
    sees_result: bool = False
    wait: Actor | None = None
    takers: list[Actor] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    has_begun: bool = False
    is_stopped: bool = False
    has_ended: bool = False
    error: type[Exception] | None = None

    def tell(self, event: str) -> None:
        self.told.append(event)
        for taker in self.takers:
            taker.tell(event)

    def note_result(self) -> None:
        self.sees_result = True
        for taker in self.takers:
            taker.note_result()


class Level:
    """Those who take turns, the next one first, and the seconds that each has used of their turn."""

    def __init__(self) -> None:
        self.names: list[Any] = []
        self.holder: Any = None
        self.used: defaultdict[Any, float] = defaultdict(float)

    def add(self, names: list[Any]) -> None:
        self.names += [name for name in dict.fromkeys(names) if name not in self.names]

    def next(self, waiting: list[Any], seconds: float) -> Any:
        """Whose turn it is, where a turn takes so long."""
        self.add(waiting)
        if self.holder not in waiting or self.used[self.holder] >= seconds:
            if self.holder is not None:
                self.names.append(self.names.pop(self.names.index(self.holder)))
            self.holder = next(name for name in self.names if name in waiting)
            self.used[self.holder] = 0.0
        return self.holder

    def next_queue(self, waiting: list[bool], turns: float) -> bool:
        """Whether it is the turn of the second queue, which has one after so many of the first."""
        if self.used[True] >= TURN:
            self.used.clear()
        return self.used[False] >= turns * TURN if len(waiting) == 2 else waiting[0]

    def place(self, name: Any) -> int:
        return -1 if name == self.holder else self.names.index(name)


class Oracle:
    """Runs the programs without threads, and says whose turn it is.

    What is to end comes first. Then people before the background, jobs that have only begun before others, and in turns
    the addresses, the clients of an address, and the jobs of a client; of a crowd's jobs those come first whose clients
    see no result. A job that waits for shared work gives it its turns and pays for them; the work ends with the last
    job that waits for it.
    """

    def __init__(self, programs: dict[str, list[tuple[str, Any]]]) -> None:
        self.programs = programs  # of shared work
        self.jobs: list[Actor] = []
        self.cancelled: list[Actor] = []
        self.works: dict[str, Actor] = {}
        self.log: list[str] = []
        self.levels: defaultdict[Path, Level] = defaultdict(Level)
        self.path: Path = ()

    def stop(self, job: Actor) -> None:
        if not job.has_ended:
            job.is_stopped = True
            if not job.has_begun:
                self.end(job)

    def path_of(self, job: Actor) -> Path:
        def place(job: Actor) -> tuple[bool, str]:
            return job.urgency is Urgency.BACKGROUND, ADDRESSES[job.client] or f"of {job.client}"

        is_crowd = len({other.client for other in self.jobs if place(other) == place(job)}) > FEW
        background, address = place(job)
        has_begun = job.sees_result or job.seconds >= BEGINNING_SECONDS
        return background, has_begun, address, is_crowd and job.sees_result, job.client, job

    def line(self) -> list[Actor]:
        def place(path: Path) -> tuple[int, ...]:
            return path[3], *(self.levels[path[:level]].place(path[level]) for level in (4, 5))

        paths, line = [self.path_of(job) for job in self.jobs], []
        for path in paths:
            for level in range(6):
                self.levels[path[:level]].add([path[level]])
        for queue in product([False, True], repeat=2):
            of_address: defaultdict[str, list[Path]] = defaultdict(list)
            for path in paths:
                if path[:2] == queue:
                    of_address[path[2]].append(path)
            columns = [sorted(of_address[name], key=place) for name in sorted(of_address, key=self.levels[queue].place)]
            line += [path[-1] for turn in zip_longest(*columns) for path in turn if path]
        return line

    def choose(self) -> tuple[Actor | None, Actor]:
        """Who pays for the next turn, and who runs in it."""
        if self.cancelled:
            return None, self.cancelled[0]
        payer = next((job for job in self.jobs if job.is_stopped or job.error), None)
        if payer is None:
            self.path, paths = (), [self.path_of(job) for job in self.jobs]
            for level, turns_of_first in enumerate((SHARE, 1, None, SHARE, None, None)):
                here = self.levels[self.path]
                waiting = list(dict.fromkeys(path[level] for path in paths if path[:level] == self.path))
                if turns_of_first is not None:
                    self.path += (here.next_queue(waiting, turns_of_first),)
                else:
                    is_long = level in (2, 4) and len(waiting) > FEW and self.path[1]
                    self.path += (here.next(waiting, LONG_TURN if is_long else TURN),)
            payer = self.path[-1]
        runner = payer
        while not runner.is_stopped and not runner.error and runner.wait and not runner.wait.has_ended:
            runner = runner.wait
        return payer, runner

    def step(self) -> None:
        """Let the next job run until its next checkpoint."""
        payer, runner = self.choose()
        seconds = self.run(runner)
        if payer is None:
            return
        payer.seconds += seconds
        for level in range(6):
            self.levels[self.path[:level]].used[self.path[level]] += seconds
        if payer.seconds > payer.limit and not (runner.has_ended or payer.is_stopped or payer.error):
            payer.error = TimeoutError

    def run(self, actor: Actor) -> float:
        """The seconds of its turn."""
        actor.has_begun = True
        if actor.wait:
            work, actor.wait = actor.wait, None
            work.takers.remove(actor)
            if not work.takers:
                self.forget(work)
            actor.error = actor.error or (None if actor.is_stopped else work.error)
        while not (actor.is_stopped or actor.error) and actor.place < len(actor.program):
            what, value = actor.program[actor.place]
            actor.place += 1
            if what == "take":
                self.log.append(actor.name)
                actor.tell(actor.name)
                return value
            if what == "share":
                actor.wait = self.works.setdefault(value, Actor(value, self.programs[value]))
                actor.wait.takers.append(actor)
                return 0.0
            if what == "urgency":
                actor.urgency = value
            elif what == "result":
                actor.note_result()
            else:
                actor.error = value if issubclass(value, Exception) else RuntimeError
        self.end(actor)
        return 0.0

    def forget(self, work: Actor) -> None:
        if self.works.get(work.name) is work:
            del self.works[work.name]
        if not work.has_ended and work.has_begun:
            work.is_stopped = True
            self.cancelled.append(work)

    def end(self, actor: Actor) -> None:
        actor.has_ended = True
        if self.works.get(actor.name) is actor:
            del self.works[actor.name]  # a job that asks now begins it anew
        for actors in (self.jobs, self.cancelled):
            if actor in actors:
                actors.remove(actor)


def random_program(rng: Random, keys: tuple[str, ...], length: int = 8) -> list[tuple[str, Any]]:
    steps = []
    for _ in range(rng.randrange(1, length)):
        what = rng.choices(["take", "share", "urgency", "result", "fail"], [8, 3 if keys else 0, 1, 1, 0.4])[0]
        values = {"take": [0.0, 0.0625, 0.125, 0.25, 1.5], "share": keys, "urgency": list(Urgency), "result": [None]}
        steps.append((what, rng.choice(values.get(what, [Failed, Panic]))))
    return steps


class Pair:
    """The scheduler and the oracle, which do the same."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.clock, self.log = rng, Clock(), []
        programs = {key: random_program(rng, KEYS[:index]) for index, key in enumerate(KEYS)}
        self.scheduler, self.oracle = Stepped(self.clock, TURN), Oracle(programs)
        self.both: list[tuple[Job, Actor]] = []

    def follow(self, job: Job, name: str, program: list[tuple[str, Any]]) -> str:
        for what, value in program:
            if what == "take":
                self.log.append(name)
                self.clock.now += value
                job.emit(name)
            elif what == "share":
                assert job.share(value, partial(self.follow, name=value, program=self.oracle.programs[value])) == value
            elif what == "urgency":
                job.urgency = value
            elif what == "result":
                job.note_result()
            else:
                raise value
        return name

    def start(self) -> None:
        client, urgency = self.rng.choice(list(ADDRESSES)), self.rng.choice(list(Urgency))
        limit = self.rng.choice([math.inf, math.inf, 2.0])
        name, program = f"{client} {len(self.both)}", random_program(self.rng, KEYS, length=14)
        work = partial(self.follow, name=name, program=program)
        job = self.scheduler.start(client, work, urgency, Caller(ADDRESSES[client]), limit)
        self.oracle.jobs.append(actor := Actor(name, program, client, urgency, limit))
        self.both.append((job, actor))

    def stop(self) -> None:
        job, actor = self.rng.choice(self.both)
        job.stop()
        self.oracle.stop(actor)

    def step(self) -> bool:
        if not self.oracle.jobs and not self.oracle.cancelled:
            return False
        if not self.oracle.cancelled and not any(actor.is_stopped or actor.error for actor in self.oracle.jobs):
            jobs = dict(self.both)
            assert [jobs[job] for job in self.scheduler.line()] == self.oracle.line()
        assert self.scheduler.step()
        self.oracle.step()
        return True

    def compare(self) -> None:
        assert self.log == self.oracle.log
        for job, actor in self.both:
            assert (job.ended, job.seconds, job.urgency) == (actor.has_ended, actor.seconds, actor.urgency), actor
            assert job.has_result == actor.sees_result
            if actor.has_ended:
                assert type(job.error) is (actor.error or type(None))
                assert job.result == (None if actor.is_stopped or actor.error else actor.name)
                assert job._events == actor.told


@pytest.mark.parametrize("seed", range(40))
def test_the_oracle_says_who_runs(seed, monkeypatch) -> None:
    """Jobs that share work, change their urgency, note results, fail, are stopped and reach their limit, at random."""
    for module in (job_module, round_robin):
        monkeypatch.setattr(module, "FEW", FEW)
    monkeypatch.setattr(round_robin, "LONG_TURN_SECONDS", LONG_TURN)
    pair = Pair(rng := Random(seed))
    pair.start()
    for _ in range(150):
        act = rng.choices([pair.start, pair.stop, pair.step], [2, 0.7, 12])[0]
        act()
        pair.compare()
    while pair.step():
        pair.compare()
    assert not pair.scheduler.step()
    assert [pair.scheduler.jobs, pair.scheduler._shared, pair.scheduler._cancelled] == [[], {}, []]


CLASS, ELSEWHERE = Caller("127.0.0.2"), Caller("127.0.0.3")
MANY = limits.FEW + 2
STEP = 0.125  # seconds of a step; sums of it are exact


@pytest.fixture
def crowd(clock) -> Stepped:
    """A scheduler on which every step of a job takes `STEP` seconds."""
    return Stepped(clock, limits.TURN_SECONDS)


@pytest.fixture
def join(crowd, clock) -> Callable[..., None]:
    """Begins a job for each name, of a client of its own."""

    def begin(names: Iterable, steps: int, caller: Caller = CLASS) -> None:
        for name in names:
            crowd.start(str(name), counting([], name, steps, clock, STEP), caller=caller)

    return begin


def test_turns_of_long_ago_are_forgotten(crowd, join, monkeypatch) -> None:
    monkeypatch.setattr(round_robin, "REMEMBERED_TURNS", 30)
    for number in range(20):
        join([number], 2)
        crowd.run()
    assert len(crowd._turns._turns) < 50


@pytest.fixture
def line(monkeypatch) -> Line:
    monkeypatch.setattr(limits, "LINE_SECONDS", -1.0)
    return Line()


def ended(kind: str, seconds: float, result: float | None = None) -> Job:
    job = Stepped().start("x", lambda job: None)
    job.kind, job.seconds, job.seconds_to_result = kind, seconds, result
    return job


def test_a_job_that_waits_tells_how_many_come_before_it_and_how_long_they_take(crowd, join, line) -> None:
    """How long is estimated from the last jobs of their kind until their first result, the newest with less weight."""
    join(range(MANY), 20)
    join(["alone"], 20, ELSEWHERE)
    for _ in range(14):
        crowd.step()
    for job in crowd.jobs:
        job.kind = "evaluate 18"
    order = crowd.line()
    assert "alone" in order[0].client + order[1].client  # the addresses take turns
    first, second, *_, last = order
    assert line.status(last, crowd) == Waiting("Waiting; jobs ahead: 6")  # nothing is known of this kind
    for seconds, result in ((30.0, 3.0), (2.0, None)):
        line.note(ended("evaluate 17", seconds, result))
    stopped = ended("evaluate 3", 500.0)
    stopped.stopped = True
    line.note(stopped)
    assert line.status(first, crowd) is None
    assert line.status(second, crowd) == Waiting("Waiting; jobs ahead: 1", seconds_left=5)
    assert line.status(last, crowd) == Waiting("Waiting; jobs ahead: 6", seconds_left=15)
    for job in order[:-1]:
        job.stop()
    crowd.run()
    assert line.status(last, crowd) is None


def test_what_several_wait_for_counts_once_and_a_clients_own_jobs_do_not(scheduler, clock, line) -> None:
    work = counting([], "made", 400, clock, STEP)
    jobs = [scheduler.start(f"{n}", lambda job: job.share("slice", work), caller=CLASS) for n in range(limits.FEW + 1)]
    jobs += [scheduler.start("last", counting([], "", 400, clock, STEP), Urgency.BACKGROUND, CLASS) for _ in range(2)]
    while not all(job.wait for job in jobs[: limits.FEW + 1]):
        scheduler.step()
    line.note(ended("measure", 9.0, 4.5))
    for job in jobs:
        job.kind = "measure"
    told = line.status(jobs[-1], scheduler)
    assert told.text == f"Waiting; jobs ahead: {limits.FEW + 1}"
    assert told.seconds_left <= 5


def test_a_job_that_has_the_turn_or_is_away_does_not_wait(crowd, join, line) -> None:
    seen = []

    def work(job: Job) -> None:
        seen.append(line.status(job, crowd))
        job.checkpoint()

    join(range(2), 20)
    job = crowd.start("a", work)
    while not seen:
        crowd.step()
    assert seen == [None]
    with crowd.lock:
        job.is_away = True
    assert line.status(job, crowd) is None


def test_the_page_tells_it_once_in_a_while_and_again_after_the_job_has_done_something(scheduler, monkeypatch) -> None:
    for name in ("LINE_SECONDS", "REMINDER_SECONDS", "QUIET_SECONDS"):
        monkeypatch.setattr(limits, name, 0.01 if name == "QUIET_SECONDS" else 0.0)
    jobs = Jobs(scheduler)
    scheduler.start("other", counting([], "", 20))  # whose turns alternate with those of the job

    def work(job: Job) -> None:
        job.emit(Status("working"))
        for _ in range(9):
            job.checkpoint()

    events = jobs.run("me", "answer", work)
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    for _ in range(3):
        scheduler.step()
    assert next(events).text == "working"
    assert next(events) == Waiting("Waiting; jobs ahead: 1")
    scheduler.run()
    assert list(events) == []
