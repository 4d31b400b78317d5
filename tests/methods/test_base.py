# ruff: noqa: ARG002
"""The contract: defaults, presets, the table, and that ten lines are a method."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar, Literal

import pytest
from pydantic import Field, ValidationError

from sightline.archive import ArchiveConfig
from sightline.config import load_recipe
from sightline.credit.config import CreditConfig, ObjectiveConfig, Settings
from sightline.errors import UserError
from sightline.methods import METHODS, load_method, load_method_config, method_class, method_config_class
from sightline.methods.base import Context, Method, MethodConfig, Stream, StreamConfig, in_order, score_table
from sightline.methods.grit import GRITConfig
from sightline.methods.ivgr import IVGR, IVGRConfig
from sightline.train.scoring import archive_for, credit, score
from sightline.types import Group, Record, Score, Scores


class Brevity(Method):
    """A user's method in ten lines: the shorter the better."""

    def streams(self, record: Record) -> tuple[Stream, ...]:
        return (Stream("textual", "textual", n=2),)

    def score(self, group: Group, context: Context) -> tuple[Scores, ...]:
        return score_table(brevity=[Score(-float(len(text.text)), "characters") for text in group.readings])


def test_ten_lines_are_a_method(world) -> None:
    groups = [world.group(world.record(), textual=["a long reply", "short"])]
    scored = credit(Brevity(), score(Brevity(), groups, world.context()))
    assert [s.total for s in scored[0].scores] == [-12, -5]
    assert [round(c.parts["advantage"], 3) for c in scored[0].credits] == [-0.707, 0.707]
    assert Brevity().stream_weights(groups) == {"textual": 1.0}
    assert Brevity().stages()[0].kind == "reinforcement"
    assert Brevity().probes() == ()


def test_a_users_class_is_loaded_by_dotted_path(monkeypatch) -> None:
    module = type(sys)("users_package")
    module.Brevity = Brevity  # pyright: ignore[reportAttributeAccessIssue]
    module.number = 3  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "users_package", module)
    raw = {"name": "users_package:Brevity", "credit": {"how": "rloo"}}
    method = load_method(raw)
    assert isinstance(method, Brevity)
    assert method.config.credit.how == "rloo"
    assert method.config.name == "users_package:Brevity"
    with pytest.raises(UserError, match="is not a subclass"):
        method_class("users_package:number")
    with pytest.raises(UserError, match="cannot import 'users_package:Gone'"):
        method_class("users_package:Gone")
    with pytest.raises(UserError, match="cannot import 'no_such_package:X'"):
        method_class("no_such_package:X")


def test_at_most_seven_members_can_be_overridden() -> None:
    final = {name for name, member in vars(Method).items() if getattr(member, "__final__", False)}
    public = {name for name, member in vars(Method).items() if callable(member) and name[0].islower()}
    assert public - final == {"streams", "probes", "score", "references", "credit", "loss", "stages"}


def test_a_bare_method_is_grpo(world) -> None:
    group = world.group(world.record(), textual=["<think>x</think><answer>green</answer>", "blue"])
    scores = Method().score(group, world.context())
    assert [{k: t.value for k, t in s.terms.items()} for s in scores] == [
        {"format": 1, "accuracy": 1},
        {"format": 0, "accuracy": 0},
    ]
    assert Method().streams(group.record) == (Stream("textual", "textual", 5, (5,)),)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_loads_and_its_config_returns(name) -> None:
    method = load_method({"name": name})
    assert isinstance(method, method_class(name))
    again = load_method_config(method.config.model_dump(mode="json"))
    assert again == method.config
    assert again.name == name


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"name": "ivgrr"}, "method.name: unknown method 'ivgrr' (did you mean 'ivgr'?)"),
        ({}, f"method.name: a method needs a name (one of {', '.join(METHODS)})"),
        ({"name": "grpo", "preset": "paper"}, "method.preset: unknown key 'preset'"),
        ({"name": "ivgr", "preset": "papr"}, "did you mean 'paper'?"),
        ({"name": "ivgr", "archiv": {}}, "method.archiv: unknown key 'archiv' (did you mean 'archive'?)"),
        ({"name": "ivgr", "archive": {"min_bax": 0.5}}, "did you mean 'min_box'?"),
        (
            {"name": "ivgr", "streams": {"grounded": {"n": 0}}},
            "method.streams.grounded.n: expected a whole number >= 1",
        ),
        ({"name": "grpo", "streams": {"txtual": {"n": 2}}}, "streams"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(raw, said) -> None:
    with pytest.raises(UserError) as caught:
        load_method(raw)
    assert said in str(caught.value)


class Config(MethodConfig):
    presets: ClassVar = {"b": {"credit": {"how": "rloo", "eps": 0.5}, "size": 7}}
    preset: Literal["a", "b"] = "a"
    size: int = Field(default=1, description="size")


def test_presets_are_defaults_under_explicit_keys() -> None:
    assert (Config().size, Config().credit.how) == (1, "grpo")
    assert (Config(preset="b").size, Config(preset="b").credit.eps) == (7, 0.5)
    mixed = Config.model_validate({"preset": "b", "credit": {"how": "dr_grpo"}, "size": 2})
    assert (mixed.size, mixed.credit.how, mixed.credit.eps) == (2, "dr_grpo", 0.5)
    with pytest.raises(ValidationError):
        Config.model_validate({"preset": ["b"]})


class Sized(Settings):
    width: int = 1
    height: int = 1


class Sections(Settings):
    inner: Sized = Sized(width=2, height=2)


class Layered(MethodConfig):
    presets: ClassVar = {"b": {"credit": {"how": "rloo", "eps": 0.5}, "objective": {"normalisation": "sequence"}}}
    preset: Literal["a", "b"] = "a"
    credit: CreditConfig = CreditConfig(eps=0.25, ddof=1)
    objective: ObjectiveConfig = ObjectiveConfig(kl=0.04)
    sections: Sections = Sections()


@pytest.mark.parametrize(
    ("given", "credit", "objective"),
    [
        ({}, ("grpo", 0.25, 1), (0.04, "token")),
        ({"credit": {"ddof": 0}}, ("grpo", 0.25, 0), (0.04, "token")),
        ({"preset": "b"}, ("rloo", 0.5, 1), (0.04, "sequence")),
        ({"preset": "b", "credit": {"ddof": 0}}, ("rloo", 0.5, 0), (0.04, "sequence")),
        ({"preset": "b", "credit": {"eps": 0.1}, "objective": {"kl": 0.5}}, ("rloo", 0.1, 1), (0.5, "sequence")),
        ({"preset": "b", "objective": ObjectiveConfig()}, ("rloo", 0.5, 1), None),
    ],
)
def test_explicit_keys_go_before_the_preset_and_that_before_the_methods_own_default(given, credit, objective) -> None:
    found = Layered.model_validate(given)
    assert (found.credit.how, found.credit.eps, found.credit.ddof) == credit
    expected = (ObjectiveConfig().kl, ObjectiveConfig().normalisation) if objective is None else objective
    assert (found.objective.kl, found.objective.normalisation) == expected


def test_sections_within_sections_keep_the_methods_own_default_too() -> None:
    inner = Layered.model_validate({"sections": {"inner": {"width": 5}}}).sections.inner
    assert (inner.width, inner.height) == (5, 2)
    assert GRITConfig.model_validate({"streams": {"grit": {"loss_weight": 2.0}}}).streams.grit.n == 4


def test_strict_types() -> None:
    for bad in ({"streams": {"textual": {"n": "5"}}}, {"weights": {"format": -1}}, {"credit": {"eps": float("nan")}}):
        with pytest.raises(ValidationError):
            load_method_config({"name": "grpo", **bad})


def test_branches_multiply_to_n() -> None:
    assert Stream("s", "s", 6).branches == (6,)
    assert Stream("s", "s", 6, branches=(2, 3)).branches == (2, 3)
    with pytest.raises(ValueError, match="do not multiply"):
        Stream("s", "s", 5, branches=(2, 3))
    assert StreamConfig(n=3, loss_weight=0.5).stream("x", reads_archive=True) == Stream(
        "x", "x", 3, loss_weight=0.5, reads_archive=True
    )


def test_scores_return_in_the_order_of_the_rollouts(world) -> None:
    group = world.group(world.record(), a=["1", "2"], b=["3", "4"]).at([2, 0, 3, 1])
    table = {"a": score_table(x=[Score(1), Score(2)]), "b": score_table(x=[Score(3), Score(4)])}
    assert [s.total for s in in_order(group, table)] == [3, 1, 4, 2]


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        score_table(a=[Score(1)], b=[])


def test_archive_rules_come_from_the_config() -> None:
    assert archive_for(Brevity()).config == ArchiveConfig()
    method = IVGR(IVGRConfig.model_validate({"archive": {"policy": "current_step"}}))
    assert archive_for(method).config.policy == "current_step"


def test_shipped_recipes_name_valid_methods() -> None:
    named = {"faithful_mr1": "faithful_mr1_style"}  # no claim to be the paper's
    for name in METHODS:
        assert isinstance(load_recipe(named.get(name, name)).method_config, method_config_class(name))


def test_methods_import_neither_torch_nor_transformers() -> None:
    names = ", ".join(path.partition(":")[0] for path in METHODS.values())
    heavy = "{'torch', 'transformers', 'PIL'}"
    code = f"import sys, sightline.train.scoring, {names}; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["ivgr", "treevgr"])
def test_a_section_given_in_part_keeps_the_methods_own_default(name: str) -> None:
    config = load_method_config({"name": name, "objective": {"ratio": "sequence"}})
    assert config.objective.kl == 0.01
    assert (config.objective.ratio, config.objective.normalisation) == ("sequence", "sequence")
    assert load_method_config({"name": name, "objective": {"kl": 0.0}}).objective.kl == 0.0
