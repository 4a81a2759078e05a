"""The sweep against plain slicing, its points on disk, and what cannot be reached."""

import datetime
from unittest.mock import Mock

import pandas
import pytest
import torch
from gguf_files import byte_tokenizer
from stopping import Stopped, stop_when

from intraslice.checkpoints.to_gguf import gguf_bytes, rounded_model
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NoRoomError, NumericalError
from intraslice.core.progress import Progress
from intraslice.evaluation import speed
from intraslice.evaluation import sweep as module
from intraslice.evaluation.perplexity import DenseStates, measure_losses, perplexity
from intraslice.evaluation.speed import SpeedConfig, measure_speed
from intraslice.evaluation.sweep import Point, Texts, cached_points, points, sweep
from intraslice.methods.registry import METHODS

pytestmark = pytest.mark.usefixtures("own_cache")


def texts(case) -> Texts:
    return Texts(case.stats, case.tokens, case.tokens[:4, :20])


@pytest.fixture
def count_measurements(monkeypatch):
    done, measure = [], module._Sweep.measure

    def counted(slices, point, *others):
        done.append((point.method, point.sparsity))
        return measure(slices, point, *others)

    monkeypatch.setattr(module._Sweep, "measure", counted)
    return done


def test_points_are_all_combinations_once():
    found = points(["intraslice", "crossmodule", "intraslice"], ["pca", "uniform"], [0.3, 0.1, 0.3])
    assert found == tuple(
        Point(method, estimator, sparsity)
        for sparsity in (0.1, 0.3)
        for method, estimator in (("intraslice", "pca"), ("intraslice", "uniform"), ("crossmodule", None))
    )


@pytest.mark.parametrize("name", ["phi", pytest.param("llama-gqa", marks=pytest.mark.slow)])
def test_each_row_is_what_plain_slicing_gives(name, tiny_case):
    case = tiny_case(name)
    methods = ["intraslice", "crossmodule", "modegpt"] if name == "phi" else list(METHODS)
    wanted = points(methods, ["pca", "uniform"], [0.3])
    frame = sweep(case.loaded, texts(case), wanted, progress=False)
    count = len(methods) + sum(METHODS[name].uses_estimator for name in methods)
    assert len(frame) == count
    dense = case.dense
    windows = texts(case).evaluation
    assert frame["dense_perplexity"].tolist() == pytest.approx([perplexity(dense, windows, progress=False)] * count)
    for row in frame.itertuples():
        estimator = "pca" if pandas.isna(row.estimator) else row.estimator
        plan = case.plan(row.sparsity, row.method, estimator=estimator, order="sequential")
        model = case.cut(plan, row.method)
        assert row.perplexity == pytest.approx(perplexity(model, windows, progress=False), rel=1e-4)
        losses = measure_losses(model, windows, dense=DenseStates(dense), progress=False)
        ratio = losses.ratio(measure_losses(dense, windows, progress=False))
        assert (row.divergence, row.perplexity_ratio) == pytest.approx((losses.divergence()[0], ratio[0]), rel=1e-4)
        errors = row.divergence_error, row.perplexity_ratio_error
        assert errors == pytest.approx((losses.divergence()[1], ratio[1]), rel=1e-3)
        assert datetime.date.fromisoformat(row.date) <= datetime.date.today()
        assert row.sliced_total == sum(p.numel() for p in model.parameters())
        assert row.removed_fraction == pytest.approx(plan.removed_fraction, abs=1e-9)


def test_further_texts_add_columns_that_are_what_a_sweep_on_them_gives(case, count_measurements):
    wanted = points(["intraslice", "crossmodule"], ["pca"], [0.3])
    own, news = texts(case), case.tokens[4:6, :12]
    both = sweep(case.loaded, module.replace(own, others={"news": news}), wanted, progress=False)
    assert count_measurements == [("intraslice", 0.3), ("crossmodule", 0.3)]  # one model a point, for all texts
    parts = [module.replace(own, evaluation=part) for part in (own.evaluation, news)]
    plain, alone = (sweep(case.loaded, part, wanted, progress=False) for part in parts)
    for column in ("dense_perplexity", "perplexity", "perplexity_ratio_error", "divergence_error"):
        assert both[column].tolist() == plain[column].tolist()
        assert both[f"{column} news"].tolist() == alone[column].tolist()


def test_the_dense_model_runs_once_over_each_text(case):
    modules = []
    layer = case.dense.model.layers[0]
    both = module.replace(texts(case), others={"news": case.tokens[4:6, :12]})
    handle = layer.register_forward_hook(lambda module, *_: modules.append(module))  # copied to sliced layers
    sweep(case.loaded, both, points(["magnitude"], [], [0.2, 0.4]), progress=False)
    handle.remove()
    assert sum(module is layer for module in modules) == 2


def test_rounded_points_are_what_rounding_a_slice_gives_and_the_dense_model_is_among_them(case, monkeypatch):
    config = SliceConfig(order="one-shot")
    loaded, own, dense = module.replace(case.loaded, tokenizer=byte_tokenizer()), texts(case), case.dense
    sliced, slice_once = [], module.slice_by
    monkeypatch.setattr(module, "slice_by", lambda *a, **k: sliced.append(a[0]) or slice_once(*a, **k))
    grid = points(["intraslice", "crossmodule"], ["pca"], [0.3], ["none", "q4_0"])
    frame = sweep(loaded, own, grid, config, progress=False)
    assert sliced == ["intraslice", "crossmodule"]
    methods = ["dense", "dense", "intraslice", "intraslice", "crossmodule", "crossmodule"]
    assert frame["method"].tolist() == methods
    assert frame["quantise"].tolist() == ["none", "q4_0"] * 3
    model = case.sliced(0.3)
    for index, (original, kind) in enumerate([(dense, "none"), (dense, "q4_0"), (model, "none"), (model, "q4_0")]):
        row, evaluated = frame.iloc[index], original
        if kind != "none":
            evaluated = rounded_model(original, kind, progress=False)
        assert row["perplexity"] == pytest.approx(perplexity(evaluated, own.evaluation, progress=False), rel=1e-5)
        weights = sum(p.nbytes for p in original.parameters())
        assert row["bytes"] == (weights if kind == "none" else gguf_bytes(original, loaded.tokenizer, kind))
        assert row["sliced_total"] == sum(p.numel() for p in original.parameters())
    assert frame["divergence"][0] == 0 < frame["divergence"][1]
    assert pandas.isna(frame["perplexity"].iloc[-1])
    assert "shortcut" in frame["note"].iloc[-1]  # which no GGUF file can hold
    grid = points(["intraslice"], ["pca"], [0.3], ["q4_0"])
    again = sweep(loaded, own, grid, config, SpeedConfig(prompt=8, new=2, repeats=1), progress=False)
    assert again["perplexity"].tolist() == frame["perplexity"][[1, 3]].tolist()
    assert "prefill_ratio" not in again
    assert len(sliced) == 2  # all was kept, as no type of GGUF has a speed
    assert cached_points(loaded, own, grid, config) == grid
    sweep(loaded, own, points(["intraslice"], ["pca"], [0.3], ["q8_0"]), config, progress=False)
    assert len(sliced) == 3


def test_a_stopped_sweep_goes_on_and_a_larger_one_reuses_it(case, count_measurements):
    wanted = points(["intraslice"], ["pca"], [0.2, 0.3, 0.4])
    with pytest.raises(Stopped):
        sweep(case.loaded, texts(case), wanted, progress=stop_when(lambda event: event == Progress("sweep", 2, 3)))
    assert count_measurements == [("intraslice", 0.2), ("intraslice", 0.3)]
    assert cached_points(case.loaded, texts(case), wanted, SliceConfig()) == wanted[:2]
    module._Sweep(case.loaded, texts(case), SliceConfig(), None).point_path(wanted[1]).write_text("{")
    assert cached_points(case.loaded, texts(case), wanted, SliceConfig()) == wanted[:1]  # the other one is damaged
    frame = sweep(case.loaded, texts(case), wanted, progress=False)
    assert count_measurements[2:] == [("intraslice", 0.3), ("intraslice", 0.4)]
    larger = points(["intraslice", "magnitude"], ["pca"], [0.2, 0.4])
    again = sweep(case.loaded, texts(case), larger, progress=False)
    assert count_measurements[4:] == [("magnitude", 0.2), ("magnitude", 0.4)]
    assert again["perplexity"].tolist()[::2] == frame["perplexity"].tolist()[::2]


def test_a_method_that_trains_reads_more_and_no_other(case, count_measurements):
    """And so it is another point with more of the text, where the others' stay."""
    wanted = points(["intraslice", "intraslice+"], ["pca"], [0.3])
    own = texts(case)
    more = module.replace(own, training=torch.cat([own.calibration, own.calibration.flip(1)]))
    assert [more.tokens_for(point.method, SliceConfig()) is more.training for point in wanted] == [False, True]
    first, second = (sweep(case.loaded, those, wanted, progress=False) for those in (own, more))
    assert count_measurements == [("intraslice", 0.3), ("intraslice+", 0.3), ("intraslice+", 0.3)]
    assert first["perplexity"][0] == second["perplexity"][0]
    assert first["perplexity"][1] != second["perplexity"][1]


def test_another_setting_is_another_point(case, count_measurements):
    loaded, own = case.loaded, texts(case)
    other = module.replace(loaded, fingerprint="other")
    for count, (model, text, config, estimator) in enumerate(
        [
            (loaded, own, SliceConfig(), "pca"),
            (loaded, module.replace(own, calibration=own.calibration - 1), SliceConfig(), "pca"),
            (loaded, module.replace(own, evaluation=own.evaluation - 1), SliceConfig(), "pca"),
            (loaded, own, SliceConfig(bias=1.1), "pca"),
            (loaded, own, SliceConfig(), "fisher"),
            (other, own, SliceConfig(), "pca"),
        ],
        1,
    ):
        sweep(model, text, points(["intraslice"], [estimator], [0.3]), config, progress=False)
        assert len(count_measurements) == count


def test_shapes_make_other_points_of_the_methods_that_they_bind(case, count_measurements):
    wanted = points(["intraslice", "crossmodule"], ["pca"], [0.3])
    for shapes in ("free", "runtime"):
        sweep(case.loaded, texts(case), wanted, SliceConfig(order="one-shot", shapes=shapes), progress=False)
    assert [method for method, _ in count_measurements] == ["intraslice", "crossmodule", "intraslice"]


def test_what_cannot_be_measured_is_a_note_and_tried_again_where_that_may_pass(case, monkeypatch):
    def slice_by(method: str, *values, **options):
        if method == "modegpt":
            raise NumericalError("a 64 x 64 second-moment matrix is singular")
        return real(method, *values, **options)

    real = module.slice_by
    monkeypatch.setattr(module, "slice_by", slice_by)
    frame = sweep(case.loaded, texts(case), points(["modegpt", "magnitude"], [], [0.3]), progress=False)
    assert frame["note"].tolist() == ["a 64 x 64 second-moment matrix is singular", ""]
    assert frame["perplexity"].isna().tolist() == [True, False]
    wanted = points(["intraslice"], ["uniform"], [0.2, 0.5])
    frame = sweep(case.loaded, texts(case), wanted, SliceConfig(0.3, cap=0.5, bias=0.2), progress=False)
    assert "cannot be reached" in frame["note"].iloc[-1]
    assert pandas.isna(frame["perplexity"].iloc[-1])
    wanted = points(["intraslice"], ["pca"], [0.2])
    with monkeypatch.context() as patch:
        patch.setattr(module, "slice_by", Mock(side_effect=NoRoomError("only 1 GiB is free")))
        assert sweep(case.loaded, texts(case), wanted, progress=False)["note"].tolist() == ["only 1 GiB is free"]
    assert sweep(case.loaded, texts(case), wanted, progress=False)["perplexity"].iloc[0] > 1
    monkeypatch.setattr(module, "measure_losses", None)
    assert sweep(case.loaded, texts(case), (), progress=False).empty


def test_speed_is_measured_in_turn_and_reported_as_a_ratio(tiny_case, monkeypatch):
    case = tiny_case("phi")
    grid, config = points(["intraslice"], ["pca"], [0.3]), SpeedConfig(prompt=8, new=2, repeats=2)
    row = sweep(case.loaded, texts(case), grid, speed=config, progress=False).iloc[0]
    for kind in ("prefill", "decode"):
        assert row[f"{kind}_ratio"] == pytest.approx(row[f"{kind}_sliced"] / row[f"{kind}_dense"])
        assert row[f"{kind}_dense"] > 0
    assert cached_points(case.loaded, texts(case), grid, SliceConfig(), config) == grid
    with monkeypatch.context() as patch:
        patch.setattr(module, "get_num_threads", int)
        assert cached_points(case.loaded, texts(case), grid, SliceConfig(), config) == ()  # that of other threads
    monkeypatch.setattr(type(case.loaded.model), "device", torch.device("cuda"))
    assert cached_points(case.loaded, texts(case), grid, SliceConfig(), config) == ()  # another device's speed


def test_the_median_turn_counts_and_the_first_does_not(tiny_case, monkeypatch):
    times = iter([(9.0, 9.0), (1.0, 2.0), (4.0, 2.0), (2.0, 8.0)])

    def timed(model, config, pause):
        pause()
        return next(times)

    monkeypatch.setattr(speed, "_time", timed)
    events, config = [], SpeedConfig(prompt=100, new=10, repeats=3, batch=2)
    found = measure_speed({"one": tiny_case("phi").loaded.model}, config, progress=events.append)
    assert list(dict.fromkeys(event.done for event in events)) == list(range(5))
    assert (found["one"].prefill, found["one"].decode) == (100.0, 10.0)
