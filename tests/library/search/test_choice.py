"""The choice of an estimator: the best is chosen, within its cost, on windows that nothing else reads, and once."""

from unittest.mock import Mock

import pytest
import torch

from intraslice.calibration.driver import calibrate
from intraslice.core.progress import ignore_progress
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators import Estimator, Importances
from intraslice.samples import TEMPERATURE, kept_samples
from intraslice.search import choice as module
from intraslice.search.choice import PASSES, choose_estimator

pytestmark = pytest.mark.usefixtures("own_cache")


def reversed_importances(layer) -> Importances:
    """With which first goes what goes last with `pca`."""
    own = ESTIMATORS["pca"].importance(layer)
    return Importances(1 / own.attention, 1 / own.mlp)


def test_the_better_candidate_is_chosen_at_its_cost_on_unread_windows_and_only_once(case, own_estimators, monkeypatch):
    worst = ESTIMATORS.register(Estimator("worst", "", "", reversed_importances)).name
    monkeypatch.setattr(module, "measure_losses", measure_losses := Mock(wraps=module.measure_losses))
    tokens = torch.randint(3, 256, (40, 48), generator=torch.Generator().manual_seed(1))
    calibrated, text = tokens[:32], tokens[32:]
    stats = calibrate(case.loaded, calibrated, progress=False)
    runs: list[int] = []
    embedding = case.dense.model.embed_tokens
    handle = embedding.register_forward_hook(lambda _, inputs, output: runs.append(inputs[0].numel()))
    candidates = (worst, "fisher", "pca")
    choice = choose_estimator(case.loaded, stats, text, 3, candidates, progress=False)
    handle.remove()
    assert choice.name in ("fisher", "pca")
    assert choice.excess[worst][0] > 2 * choice.excess[worst][1] > 0
    measured = [call.args[1] for call in measure_losses.call_args_list]
    first, second = measured[0], measured[-1]
    assert [windows.equal(first) for windows in measured] == [True] * 3 + [False] * 2
    assert choice.passes * stats.tokens == sum(runs) + 3  # the last token of a sample is not run
    assert choice.passes <= PASSES
    samples = kept_samples(case.dense, (64, 48), TEMPERATURE, 3, ignore_progress)
    rows, unread, *read = (
        {*map(tuple, part.tolist())} for part in (torch.cat([first, second]), text, calibrated, samples)
    )
    assert len(rows & unread) * 2 == len(rows) == len(first) + len(second)
    assert not rows & (read[0] | read[1])

    monkeypatch.setattr(module, "slice_model", None)
    assert choose_estimator(case.loaded, stats, text, 3, candidates, progress=False) == choice
    with pytest.raises(TypeError):
        choose_estimator(case.loaded, stats, text, 4, candidates, progress=False)
