"""The recipe: everything that decides a run, on one page.

Layers, lowest first: defaults of the fields, the recipe file, overrides of the command line, overrides of an arm.
A layer that chooses another `method.name` or `method.preset` starts the section `method` afresh, so a preset never
mixes with values that were written for another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from sightline.config.problems import user_error
from sightline.config.sampling import Sampling
from sightline.config.sections import Alarms, Data, Evaluation, Model, Optim, Section, Track, Train
from sightline.config.source import Origin, nested
from sightline.errors import UserError

__all__ = ["JUDGE_HINT", "Recipe", "build_recipe", "judge_problem", "merge", "resolved_yaml"]

JUDGE_HINT = "use judge.kind offline or http, or set method.weights.consistency to 0"


class Recipe(Section):
    """A resolved recipe. `method` stays the mapping as written; `method_config` is what the method made of it."""

    summary: str = Field(default="", description="one line that `recipe ls` prints")
    method: dict[str, Any] = Field(description="method name, preset, and the method's own keys")
    model: Model = Field(default_factory=Model, description="the policy")
    data: Data = Field(default_factory=Data, description="the records")
    sampling: Sampling = Field(default_factory=Sampling, description="the sampler")
    optim: Optim = Field(default_factory=Optim, description="the optimiser")
    train: Train = Field(default_factory=Train, description="the loop")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="held-out measurement")
    judge: dict[str, Any] = Field(default_factory=dict, description="who decides where rules do not")
    track: Track = Field(default_factory=Track, description="trackers")
    alarms: Alarms = Field(default_factory=Alarms, description="health limits")
    arms: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="named variants: overrides, nested or dotted; one run folder each"
    )

    @field_validator("method")
    @classmethod
    def _is_named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str) or not value["name"]:
            raise ValueError("needs a `name`, e.g. `method: {name: ivgr}`")
        return value

    @field_validator("arms")
    @classmethod
    def _arms_are_folder_names(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, overrides in value.items():
            if not name.replace("-", "_").isidentifier():
                raise ValueError(f"arm {name!r} must be a word: letters, digits, - and _")
            if "arms" in overrides:
                raise ValueError(f"arm {name!r} cannot hold arms")
        return value

    @model_validator(mode="after")
    def _evaluation_has_data(self) -> Recipe:
        if self.train.evaluate_every and not (self.evaluation.data or self.data.validation):
            raise ValueError("train.evaluate_every needs records: set data.validation or evaluation.data")
        return self

    @model_validator(mode="after")
    def _weights_can_be_shared_out(self) -> Recipe:
        if self.train.parallel == "fsdp":
            if self.model.lora is not None and self.model.lora.quantise is not None:
                raise ValueError("weights in four bits (model.lora.quantise) cannot be cut: set train.parallel ddp")
            if self.optim.states == "8bit":
                raise ValueError("8-bit states (optim.states) cannot be cut: set train.parallel ddp, or states fp32")
        return self

    @property
    def method_config(self) -> Any:
        """The method's own validated config (a pydantic object)."""
        from sightline.methods import load_method_config

        return load_method_config(self.method)

    @property
    def judge_config(self) -> Any:
        """The judge's validated config (a pydantic object)."""
        from sightline.answers.judge_config import JudgeConfig

        return JudgeConfig.model_validate(self.judge)

    def arm_recipes(self) -> dict[str, Recipe]:
        """One recipe per arm, without arms; `{}` if the recipe has none."""
        return self.arms_from(Origin())

    def arms_from(self, origin: Origin) -> dict[str, Recipe]:
        """As `arm_recipes`; mistakes are reported at the place that `origin` knows."""
        base = self.model_dump(exclude={"arms"}, exclude_unset=True)
        return {
            name: build_recipe(merge(base, nested(overrides, origin.name)), replace(origin, arm=name))
            for name, overrides in self.arms.items()
        }


def build_recipe(values: Mapping[str, Any], origin: Origin) -> Recipe:
    """Validates nested values, the method's and the judge's sections and the arms included; raises UserError."""
    try:
        recipe = Recipe.model_validate(dict(values))
    except ValidationError as error:
        raise user_error(error, Recipe, origin.where) from error
    for section in ("method", "judge"):
        try:
            getattr(recipe, f"{section}_config")
        except ValidationError as error:
            raise user_error(error, _model_of(section, recipe), origin.where, section) from error
        except UserError as error:  # names its key; the file and line are known here
            raise UserError(error.what, where=origin.where(error.where), hint=error.hint) from error
    if recipe.arms:
        recipe.arms_from(origin)
    elif problem := judge_problem(recipe.method_config, recipe.judge_config):
        raise UserError(problem, where=origin.where("judge.kind"), hint=JUDGE_HINT)
    return recipe


def judge_problem(method: Any, judge: Any) -> str:
    """Why these two configs do not fit together, "" if they do: rules leave every consistency term masked or zero."""
    weight = getattr(getattr(method, "weights", None), "consistency", 0)
    if judge.kind == "rules" and isinstance(weight, int | float) and weight > 0:
        return "kind rules decides about answers only, but the method rewards consistency"
    return ""


def _model_of(section: str, recipe: Recipe) -> type[BaseModel]:
    if section == "judge":
        from sightline.answers.judge_config import JudgeConfig

        return JudgeConfig
    from sightline.methods import method_config_class

    return method_config_class(recipe.method["name"])


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """`layer` over `base`, deep; a new method name or preset replaces the section `method`.

    Example:
        >>> merge({"method": {"name": "ivgr", "tau": 0.5}, "optim": {"lr": 0.1}}, {"method": {"preset": "release"}})
        {'method': {'name': 'ivgr', 'preset': 'release'}, 'optim': {'lr': 0.1}}
    """
    result = _deep(base, layer)
    old, new = base.get("method"), layer.get("method")
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if new.get("name", old.get("name")) != old.get("name"):
            result["method"] = dict(new)
        elif new.get("preset", old.get("preset")) != old.get("preset"):
            result["method"] = {"name": old.get("name"), **new}
    return result


def _deep(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in layer.items():
        old = result.get(key)
        result[key] = _deep(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every value of the recipe as plain data, defaults and presets filled in; arms stay overrides."""
    values = recipe.model_dump(mode="json")
    # in the order of the fields, however a recipe or an arm wrote them
    values["method"] = {**recipe.method_config.model_dump(mode="json"), "name": recipe.method["name"]}
    values["judge"] = recipe.judge_config.model_dump(mode="json")
    return values


def resolved_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it again gives an equal recipe."""
    return yaml.safe_dump(resolved(recipe), sort_keys=False, allow_unicode=True, width=120)
