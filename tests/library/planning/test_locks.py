"""Locked heads and neurons: a plan has exactly them, meets its total, and says which rule decides a head."""

from __future__ import annotations

import re

import pytest
from refusing import refused
from test_plans import KINDS, MODELS, counted, profile_of

from intraslice.core.config import Lock, SliceConfig, lock_words, parse_lock
from intraslice.planning.kept_heads import RULES
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan, head_rules, make_plan


def other_units(plan: SlicePlan, profile: Profile) -> list[Lock]:
    """Locks that contradict a plan: of a head that it removes, one that it keeps, and a number of neurons."""
    locks: list[Lock] = []
    for index, (layer, dense) in enumerate(zip(plan.layers, profile.layers, strict=True)):
        absent = set(range(dense.sizes.heads)) - {*layer.heads}
        if absent and len(locks) < 6:
            locks += [(index, "attention", "head", min(absent), "keep")]
            locks += [(index, "attention", "head", layer.heads[-1], "remove")]
    return [*locks, (1, "mlp", "neurons", profile.layers[1].sizes.neurons // 64 * 32)]


def require_locked(plan: SlicePlan, profile: Profile, locks: list[Lock]) -> None:
    for index, _, kind, unit, *state in locks:
        layer = plan.layers[index]
        if kind == "neurons":
            assert layer.neurons == unit
        else:
            assert (unit in layer.heads) == (state == ["keep"])
    for layer, dense in zip(plan.layers, profile.layers, strict=True):
        assert layer.kv_heads == len({dense.kv_head[head] for head in layer.heads})  # a query keeps its key and value


@pytest.mark.parametrize("shapes", [*KINDS, "mlp=16 dim=4"])
@pytest.mark.parametrize("estimator", ["pca", "uniform"])
def test_a_plan_has_the_locked_units_and_its_total(profile, estimator, shapes) -> None:
    free = make_plan(profile, SliceConfig(0.35, estimator, shapes=shapes))
    locks = other_units(free, profile)
    assert len(locks) > 2
    plan = make_plan(profile, SliceConfig(0.35, estimator, shapes=shapes, locked=tuple(locks)))
    require_locked(plan, profile, locks)
    sizes = profile.layers[0].sizes
    unit = sizes.dim * sizes.channel_cost  # a head
    allowed = 0.005 * profile.dense_decoder if estimator == "uniform" else unit  # uniform layers step together
    assert abs(plan.parameters.sliced_decoder - 0.65 * profile.dense_decoder) <= allowed
    assert plan.parameters.sliced_decoder == counted(profile, plan)


@pytest.mark.parametrize("shapes", KINDS)
def test_locking_what_a_plan_has_changes_no_size(profile, shapes) -> None:
    free = make_plan(profile, SliceConfig(0.3, shapes=shapes))
    locks = [(4, "attention", "head", head, "keep") for head in free.layers[4].heads]
    locks += [(3, "attention", "head", head, "remove") for head in {*range(6)} - {*free.layers[3].heads}]
    locks += [(2, "mlp", "neurons", free.layers[2].neurons)] if shapes == "runtime" else []
    locked = make_plan(profile, SliceConfig(0.3, shapes=shapes, locked=tuple(locks)))
    assert [(a.heads, a.dim, a.neurons) for a in locked.layers] == [(a.heads, a.dim, a.neurons) for a in free.layers]


def head(unit: int, state: str, layer: int = 0) -> Lock:
    return layer, "attention", "head", unit, state


KEPT = [head(unit, "keep") for unit in range(4)]


@pytest.mark.parametrize(
    ("locks", "shapes", "message"),
    [
        ([head(9, "keep")], "free", "layer 0 has no head 9; its heads are 0 to 8"),
        ([head(0, "keep", 30)], "free", "layer 30 does not exist"),
        ([(0, "attention", 1.0), head(2, "keep")], "free", "head 2 of layer 0 cannot be kept, as 100%"),
        ([head(unit, "remove") for unit in range(9)], "free", "all heads of layer 0 are locked as removed"),
        ([(0, "mlp", "neurons", 1537)], "free", "layer 0 cannot keep 1,537 neurons; .* at most 1,536"),
        ([(0, "mlp", "neurons", 400)], "runtime", "cannot keep 400 neurons; in these shapes it keeps multiples of 32"),
        ([(0, "mlp", "neurons", 400)], "mlp=64", "multiples of 64"),
        ([*KEPT, head(4, "remove")], "runtime", "heads 0, 1, 2, 3 .* without heads 4"),
        # 10.4 %: more than a head above the sparsity
        ([head(unit, "remove", layer) for layer in range(30) for unit in range(4)], "free", "more than the sparsity"),
    ],
)
def test_impossible_units_are_refused(locks, shapes, message) -> None:
    config = SliceConfig(0.1, shapes=shapes, locked=tuple(locks))
    assert re.search(message, refused(make_plan, profile_of(*MODELS["smollm2"]), config))


def test_the_rule_that_decides_a_head_is_named(profile) -> None:
    locked = (head(0, "remove"), head(1, "keep"))
    named = set()
    for sparsity in (0.1, 0.3, 0.5):
        for locks in ((), locked):
            plan = make_plan(profile, SliceConfig(sparsity, locked=locks))
            for index, layer in enumerate(plan.layers):
                rules = head_rules(profile, plan, index)
                decided = {unit for unit, rule in enumerate(rules) if rule in RULES[1:4]}
                others = {unit for unit, rule in enumerate(rules) if rule in RULES[4:]}
                assert decided.isdisjoint(layer.heads)
                assert {*range(len(rules))} - {*layer.heads} <= decided | others
                assert others == ({unit for *_, unit, _ in locks} if index == 0 else set()) or index == 0
                named |= {*rules}
    assert named >= {*RULES[:1], *RULES[4:5], "width"}
    assert head_rules(profile, make_plan(profile, SliceConfig(0.3, shapes="runtime")), 0) == ()


@pytest.mark.parametrize(
    "text", ["7 mlp 12.5", "3 attention head 5 keep", "3 attention head 0 remove", "7 mlp neurons 400"]
)
def test_a_lock_is_read_as_it_is_written(text) -> None:
    lock = parse_lock(text)
    assert " ".join(lock_words(lock)) == text
    assert SliceConfig(locked=[list(lock)]).locked == (lock,)
