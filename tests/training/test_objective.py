import pytest
import torch
from tiny_runs import make_recipe

from elastic_attention.training.objective import IntervalConstraint, MeanFull, SignedConstraint, build_constraint
from elastic_attention.training.recipe import Interval, ObjectiveConfig
from elastic_attention.training.sources import SOURCES


def test_penalty_is_the_distance_to_the_interval():
    constraint = IntervalConstraint({"a": Interval(low=0.4, high=0.6), "b": Interval(low=0.9, high=0.9)})
    with torch.no_grad():
        constraint.multiplier_linear.copy_(torch.tensor([2.0, 3.0]))
        constraint.multiplier_quadratic.copy_(torch.tensor([5.0, 7.0]))
    msr = torch.tensor([0.3, 0.5, 0.8, 1.0], requires_grad=True)
    penalty = constraint(msr, ["a", "a", "a", "b"])
    expected = torch.tensor([2 * 0.1 + 5 * 0.01, 0.0, 2 * 0.2 + 5 * 0.04, 3 * 0.1 + 7 * 0.01])
    torch.testing.assert_close(penalty, expected)
    penalty.sum().backward()
    torch.testing.assert_close(msr.grad.sign(), torch.tensor([-1.0, 0.0, 1.0, 1.0]))
    assert (constraint.multiplier_linear.grad >= 0).all()


def test_a_sample_on_the_edge_of_its_interval_is_not_pushed():
    constraint = IntervalConstraint({"a": Interval(low=0.5, high=1.0), "b": Interval(low=0.75, high=0.75)})
    with torch.no_grad():
        constraint.multiplier_linear.fill_(2.0)
    msr = torch.tensor([0.5, 1.0, 0.75], requires_grad=True)
    constraint(msr, ["a", "a", "b"]).sum().backward()
    assert msr.grad.tolist() == [0.0, 0.0, 0.0]


def test_multipliers_never_fall_below_zero():
    constraint = IntervalConstraint({"a": Interval(low=0.0, high=1.0)})
    with torch.no_grad():
        constraint.multiplier_linear.fill_(-1.0)
    constraint.clamp()
    assert constraint.multiplier_linear.item() == 0.0


def test_category_without_interval():
    with pytest.raises(KeyError, match="unknown"):
        IntervalConstraint({"a": Interval(low=0.0, high=1.0)})(torch.zeros(1), ["unknown"])


def test_signed_constraint_pushes_from_both_sides():
    constraint = SignedConstraint(0.8, 0.5)
    for progress, target in ((0.0, 0.0), (0.25, 0.4), (0.5, 0.8), (0.9, 0.8)):
        constraint.start_step(progress)
        assert constraint.current == pytest.approx(target)
    with torch.no_grad():
        constraint.multiplier_linear.fill_(-2.0)
        constraint.multiplier_quadratic.fill_(3.0)
    msr = torch.tensor([0.5, 0.9], requires_grad=True)
    penalty = constraint(msr, ["a", "b"])
    torch.testing.assert_close(penalty, torch.tensor([0.6 + 3 * 0.09, -0.2 + 3 * 0.01]))
    penalty.sum().backward()
    assert constraint.multiplier_linear.grad.item() == pytest.approx(-0.3 + 0.1)  # ascent follows the sign of the error
    constraint.clamp()
    assert constraint.multiplier_linear.item() == -2.0
    assert constraint.describe() == {
        "target_msr": 0.8,
        "multiplier_linear": {"all": -2.0},
        "multiplier_quadratic": {"all": 3.0},
    }


def test_signed_constraint_without_a_ramp():
    constraint = SignedConstraint(0.7, 0.0)
    constraint.start_step(0.0)
    assert constraint.current == 0.7


def test_mean_full_is_a_price_on_full_heads():
    constraint = MeanFull(0.05)
    torch.testing.assert_close(constraint(torch.tensor([0.0, 0.5, 1.0]), ["a"] * 3), torch.tensor([0.05, 0.025, 0.0]))
    assert not list(constraint.parameters()) and constraint.describe() == {}


@pytest.mark.parametrize(
    ("source", "kind", "wanted"),
    [
        ("head_router", None, IntervalConstraint),
        ("layer_router", None, IntervalConstraint),
        ("hard_concrete", None, SignedConstraint),
        ("alpha", None, MeanFull),
        ("static", "signed", SignedConstraint),
        ("alpha", "interval", IntervalConstraint),
    ],
)
def test_a_source_brings_its_constraint_unless_the_recipe_says_otherwise(tmp_path, source, kind, wanted):
    recipe = make_recipe(tmp_path, objective=ObjectiveConfig(constraint=kind))
    assert type(build_constraint(recipe, SOURCES[source])) is wanted
