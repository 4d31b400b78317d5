"""Recipes: strict YAML with a type, a limit and a description for every key. Imports neither torch nor transformers."""

from __future__ import annotations

from sightline.config.load import Difference, FieldLine, diff, explain, load_recipe, recipe_names, recipe_path
from sightline.config.recipe import Recipe, resolved_yaml
from sightline.config.sampling import Sampling
from sightline.config.sections import (
    Alarms,
    Data,
    DynamicSampling,
    Evaluation,
    Model,
    Optim,
    Strata,
    Track,
    Train,
)

__all__ = [
    "Alarms",
    "Data",
    "Difference",
    "DynamicSampling",
    "Evaluation",
    "FieldLine",
    "Model",
    "Optim",
    "Recipe",
    "Sampling",
    "Strata",
    "Track",
    "Train",
    "diff",
    "explain",
    "load_recipe",
    "recipe_names",
    "recipe_path",
    "resolved_yaml",
]
