"""The default tier: what `thin` keeps of a product of cases."""

from __future__ import annotations

from itertools import product

import cases
import pytest
import tiers

AXES = {"subject": ("a", "b"), "row": tuple(range(20)), "size": tuple(range(7)), "soft": (False, True)}
CASES = [("-".join(map(str, values)), dict(zip(AXES, values))) for values in product(*AXES.values())]


def kept(keep: int, *per: str, found=CASES) -> list[dict]:
    names = tiers.chosen(found, keep, per)
    return [params for name, params in found if name in names]


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("per", [("subject", "row"), ("row",), ("subject", "size", "soft")])
def test_every_group_has_its_number_and_the_rest_is_left_out(keep, per):
    sizes = {}
    for params in kept(keep, *per):
        group = tuple(params[axis] for axis in per)
        sizes[group] = sizes.get(group, 0) + 1
    assert set(sizes) == set(product(*(AXES[axis] for axis in per)))
    assert min(sizes.values()) >= keep
    assert sum(sizes.values()) <= keep * len(sizes) + sum(map(len, AXES.values())) * 2


def test_every_place_meets_every_value_of_every_axis():
    """One case per row alone would leave values of the other axes out."""
    found = kept(1, "row")
    for place in AXES["subject"]:
        for axis, values in AXES.items():
            expected = {place} if axis == "subject" else set(values)
            assert {params[axis] for params in found if params["subject"] == place} == expected


def test_the_choice_is_of_the_ids_and_not_of_their_order():
    assert tiers.chosen(CASES, 2, ("row",)) == tiers.chosen(CASES[::-1], 2, ("row",))
    shapes = {tuple(p["size"] for p in kept(2, "row") if p["row"] == row) for row in AXES["row"]}
    assert len(shapes) > 5, "rows should not all have the same sizes"


def test_a_case_that_is_named_runs():
    for name, params in CASES:
        assert tiers.chosen([(name, params)], 1, ("row",)) == {name}


def test_axes_of_a_case_are_its_fields_and_groups_may_be_of_its_properties():
    found = [(case.id, {"case": case, "tiles": 1}) for case in cases.loss_cases()]
    names = tiers.chosen(found, 1, ("subject", "narrow"))
    chosen = [params["case"] for name, params in found if name in names]
    assert len(chosen) < len(found) / 2
    for subject in cases.SUBJECTS:
        ours = [case for case in chosen if case.subject == subject]
        assert {case.narrow for case in ours} == {False, True}
        assert {case.loss for case in ours} == set(cases.LOSS_NAMES)
