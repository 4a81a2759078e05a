"""The generations of a search, recorded on disk, and what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from intraslice.core.progress import Pause, Progress, ProgressCallback
from intraslice.core.records import read_record, write_record
from intraslice.distributed.sharing import all_gather, broadcast, rank, shard_of
from intraslice.planning.measured import ModuleId, Ratios
from intraslice.search.evolution import Measures, State
from intraslice.search.levels import Allocation
from intraslice.search.measure import Candidates

JUDGED = 4  # windows that no generation reads, for the divergence before and after


@dataclass(frozen=True)
class SearchResult:
    """Ratios of every module, and the KL divergence before and after, in nats per token, on text the search never read.

    `passes` counts dense passes over the calibration tokens; `changes` has the relative change of KL in each
    generation, 0 where no child was better.
    """

    sparsity: float
    ratios: Ratios
    before: float
    after: float
    passes: float
    changes: tuple[float, ...]

    @property
    def accepted(self) -> int:
        """Generations that found a better allocation."""
        return sum(change != 0 for change in self.changes)


@dataclass(frozen=True)
class SearchProgress:
    """The search after some generations, for a live display."""

    ratios: dict[ModuleId, float]
    start: dict[ModuleId, float]  # with which it began
    generation: int
    passes: float
    changes: tuple[float, ...]


def evolve(
    candidates: Candidates,
    start: Allocation,
    step: Callable[[State, Measures], State],
    sparsity: float,
    passes: float,
    path: Path,
    report: ProgressCallback,
) -> SearchResult:
    """Run generations of a search, each by `step`, from the allocation `start` on, within a budget of dense passes.

    Every generation is recorded in the file `path`, from which an interrupted search continues. The measurements of a
    generation are shared among all processes.
    """
    record = broadcast(read_record(path))
    passes_per_window = candidates.windows.shape[1] / candidates.stats.tokens
    journal: list[State] = []
    for recorded in record.get("states", []):  # those of a larger budget may follow
        if not journal or journal[-1].windows * passes_per_window < passes:
            journal.append(State.parse(recorded))
    state = journal[-1] if journal and passes > 0 else State(start)

    def event() -> Progress:
        done = min(passes, state.windows * passes_per_window)
        return Progress("search", round(done), max(1, round(passes)), partial=live)

    def live() -> SearchProgress:
        return SearchProgress(
            candidates.levels.ratios(state.allocation),
            candidates.levels.ratios(start),
            state.generation,
            state.windows * passes_per_window,
            state.changes,
        )

    def pause() -> None:
        report(event())

    measures = _Shared(candidates, pause)
    pause()
    while state.windows * passes_per_window < passes:
        state = step(state, measures)
        journal.append(state)
        if rank() == 0:
            write_record(path, {"states": [asdict(one) for one in journal]}, "the generations of a search")
        pause()
    judged = range(len(candidates.windows) - JUDGED, len(candidates.windows))
    before, after = map(fmean, measures.divergence([start, state.allocation], judged))
    ratios = candidates.levels.ratios(state.allocation)
    return SearchResult(sparsity, ratios, before, after, state.windows * passes_per_window, state.changes)


@dataclass(frozen=True)
class _Shared:
    """Measurements of candidates, shared among all processes."""

    candidates: Candidates
    pause: Pause

    def divergence(self, allocations: Sequence[Allocation], windows: range) -> list[list[float]]:
        mine = allocations[shard_of(len(allocations))]
        return all_gather([self.candidates.divergence(one, windows, self.pause).tolist() for one in mine])

    def costs(
        self, allocation: Allocation, alternatives: Mapping[int, Sequence[int]], windows: range
    ) -> dict[tuple[int, int], float]:
        return broadcast(self.candidates.costs(allocation, alternatives, windows, self.pause))
