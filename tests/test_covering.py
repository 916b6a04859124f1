"""Of a covering test's combinations few are run, and any values meet in one that is."""

import itertools

import pytest

from tests.covering import few


@pytest.mark.parametrize(("strength", "at_most"), [(1, 4), (2, 16), (3, 36)])
def test_any_values_meet(strength, at_most):
    values = {"a": range(4), "b": range(3), "c": range(3), "d": range(2)}
    every = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    chosen = [every[place] for place in few(every, strength, "seed")]
    assert len(chosen) <= at_most
    for names in itertools.combinations(values, strength):
        for meeting in itertools.product(*(values[name] for name in names)):
            assert any(all(each[name] == value for name, value in zip(names, meeting, strict=True)) for each in chosen)


def test_seeds_choose_differently():
    every = [{"a": a, "b": b} for a in range(4) for b in range(4)]
    assert few(every, 1, "seed") == few(every, 1, "seed")
    assert len({frozenset(few(every, 1, seed)) for seed in "abcd"}) > 1
