from dataclasses import fields

import pytest

from ditprune.budget import SharedThreshold, WaterFilling
from ditprune.granularity import Layer, Row
from ditprune.importance import TrajectoryImportance
from ditprune.recipe import Recipe, best
from ditprune.repair import ADMM, BiasCorrection, KroneckerADMM
from ditprune.saliency import OBS, Energy


def recipe(**parts) -> Recipe:
    return Recipe(**{"saliency": Energy(), "granularity": Layer(), **parts})


@pytest.mark.parametrize(
    "parts", [{}, {"sequential": True}, {"repair": ADMM()}, {"importance": TrajectoryImportance()}]
)
def test_the_dense_goal_needs_a_sequential_repair(parts):
    recipe(**parts)
    with pytest.raises(ValueError, match="goal='dense'.*needs both"):
        recipe(goal="dense", **parts)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, "dense"),
        ({"repair": ADMM()}, "dense"),
        ({"sequential": True}, "pruned"),
        ({"sequential": True, "repair": ADMM()}, "pruned"),
        ({"sequential": True, "repair": ADMM(), "goal": "dense"}, "both"),
    ],
)
def test_later_blocks_follow_the_models_that_the_goal_needs(parts, expected):
    assert recipe(**parts).follow == expected


@pytest.mark.parametrize(
    ("parts", "needed", "deciding"),
    [
        ({}, False, False),
        ({"budget": WaterFilling(), "repair": BiasCorrection()}, False, False),
        ({"repair": ADMM()}, True, False),
        ({"saliency": OBS()}, True, True),
        ({"budget": SharedThreshold()}, True, True),
        ({"budget": SharedThreshold(), "repair": BiasCorrection()}, True, True),
        ({"repair": BiasCorrection(), "sequential": True}, False, False),
        ({"repair": BiasCorrection(), "sequential": True, "goal": "dense"}, True, False),
    ],
)
def test_gram_matrices_are_needed_where_a_part_reads_them_and_early_where_it_decides(
    parts, needed, deciding
):
    """The dense goal is found by the Gram matrix, whatever the repair reads."""
    assert recipe(**parts).needs_gram is needed
    assert recipe(**parts).decides_by_gram is deciding


def test_at_another_sparsity_all_else_stays():
    parts = {
        "budget": WaterFilling(), "repair": ADMM(), "sequential": True, "goal": "dense",
        "importance": TrajectoryImportance(num_steps=7),
    }  # fmt: skip
    before = recipe(**parts)
    assert before.at(0.7) == recipe(sparsity=0.7, **parts)
    assert before.sparsity == 0.5


def test_the_parts_are_all_fields_and_tell_recipes_apart():
    parts = recipe(importance=TrajectoryImportance(num_steps=7)).parts()
    assert list(parts) == [field.name for field in fields(Recipe)]
    assert parts["sparsity"] == "0.5"
    assert parts["goal"] == "'own'"
    assert parts["repair"] == "None"
    assert "num_steps=7" in parts["importance"]
    for name, value in {"granularity": Row(), "repair": ADMM(), "sequential": True}.items():
        other = recipe(importance=TrajectoryImportance(num_steps=7), **{name: value}).parts()
        assert {key for key in parts if parts[key] != other[key]} == {name}


def test_the_best_recipe_weighs_errors_by_the_guidance_of_the_sampling_to_come():
    found = best(0.6, guidance_scale=4.0)
    assert found.sparsity == 0.6
    assert found.importance == TrajectoryImportance(guidance_scale=4.0)
    assert (found.budget, found.repair) == (SharedThreshold(), KroneckerADMM())
    assert found.decides_by_gram
    assert best(0.6).importance == TrajectoryImportance()
