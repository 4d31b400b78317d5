from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sightline.config import diff, explain, load_recipe, recipe_names, recipe_path, resolved_yaml
from sightline.config.problems import schema_fields
from sightline.config.recipe import Recipe, merge
from sightline.config.source import nested, parse_overrides
from sightline.errors import UserError

GRPO = "method: {name: grpo}\n"


def load(folder: Path, text: str = GRPO, *overrides: str) -> Recipe:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(str(folder / "my.yaml"), "my.yaml")


def test_a_judge_that_cannot_compare_reasoning_is_refused_where_consistency_is_rewarded(tmp_path: Path) -> None:
    said = (
        "judge.kind: kind rules decides about answers only, but the method rewards consistency (use judge.kind offline"
    )
    start, rules = "data: {train: 'scenes:easy'}\njudge: {kind: rules}\n", "method: {name: ivgr}\n"
    assert said in message(tmp_path, start + rules)
    assert said in message(tmp_path, start + GRPO, "--method.name", "ivgr")
    assert said in message(tmp_path, start + GRPO + "arms: {a: {method: {name: ivgr}}, b: {}}\n")
    assert load(tmp_path, start + GRPO).judge_config.kind == "rules"
    assert load(tmp_path, start + rules, "--method.weights.consistency", "0").judge_config.kind == "rules"
    only_arms_run = start + rules + "arms: {a: {method: {name: grpo}}}\n"
    assert list(load(tmp_path, only_arms_run).arm_recipes()) == ["a"]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_resolve_to_themselves(tmp_path: Path, name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.summary
    assert len(recipe.summary) <= 120
    text = resolved_yaml(recipe)
    again = load(tmp_path, text)
    assert resolved_yaml(again) == text
    assert diff(recipe, again) == ()
    for arm, one in recipe.arm_recipes().items():
        assert resolved_yaml(again.arm_recipes()[arm]) == resolved_yaml(one)
        assert resolved_yaml(load(tmp_path, resolved_yaml(one))) == resolved_yaml(one)


def test_an_arm_that_adds_a_key_resolves_to_itself(tmp_path: Path) -> None:
    recipe = load(tmp_path, "method: {name: ground_r1, tree: {n_answer: 1}}\narms: {grpo: {method: {advantage: grpo}}}")
    again = load(tmp_path, resolved_yaml(recipe))
    assert resolved_yaml(again.arm_recipes()["grpo"]) == resolved_yaml(recipe.arm_recipes()["grpo"])


def test_there_are_at_most_a_dozen_recipes() -> None:
    assert {"demo", "grpo", "ivgr", "treevgr"} <= set(recipe_names())
    assert len(recipe_names()) <= 12


def test_ivgr_has_the_published_values() -> None:
    recipe = load_recipe("ivgr")
    assert (recipe.optim.lr, recipe.optim.inner_steps, recipe.optim.warmup_steps) == (1e-6, 4, 7)
    assert (recipe.train.steps, recipe.train.seed, recipe.train.checkpoint_every) == (360, 2025, 20)
    assert (recipe.model.min_pixels, recipe.model.max_pixels) == (4 * 28**2, 4096 * 28**2)
    config = recipe.method_config
    assert (config.streams.grounded.n, config.objective.kl) == (5, 0.01)
    assert (config.objective.clip_low, config.objective.clip_high, config.objective.dual_clip) == (0.2, 0.28, 3.0)
    release = load_recipe("ivgr", ["--method.preset", "release"]).method_config
    assert (release.weights.validity, release.weights.general_accuracy) == (1.0, 1.5)


def test_the_arms_of_the_demo_have_the_same_batch() -> None:
    arms = load_recipe("demo").arm_recipes()
    assert list(arms) == ["textual", "ivgr"]
    textual, ivgr = arms["textual"], arms["ivgr"]
    assert textual.method_config.streams["textual"].n == 8
    assert list(textual.method_config.streams) == ["textual"]
    streams = ivgr.method_config.streams
    assert (streams.grounded.n, streams.textual.n) == (8, 8)
    assert textual.data.records_per_step * 8 == ivgr.data.records_per_step * 16 == 512
    changed = {d.key for d in diff(textual, ivgr) if not d.key.startswith("method.")}
    assert changed == {"data.records_per_step"}
    assert not textual.arms
    assert not ivgr.arms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim:\n  lrr: 1e-6\n", "my.yaml:3: optim.lrr: unknown key 'lrr' (did you mean 'lr'?)"),
        ("lr: 1e-6\n", "my.yaml:2: lr: unknown key 'lr' (did you mean 'optim.lr'?)"),
        ("optim: {lr: fast}\n", "my.yaml:2: optim.lr: expected a number > 0 and <= 1, got 'fast'"),
        ("optim: {lr: 0}\n", "my.yaml:2: optim.lr: expected a number > 0 and <= 1, got 0"),
        ("optim: {lr: .nan}\n", "my.yaml:2: optim.lr: expected a number > 0 and <= 1, got nan"),
        ("train: {steps: 1.5}\n", "my.yaml:2: train.steps: expected a whole number >= 0, got 1.5"),
        ("train: {steps: true}\n", "my.yaml:2: train.steps: expected a whole number >= 0, got True"),
        ("train: {steps: '5'}\n", "my.yaml:2: train.steps: expected a whole number >= 0, got '5' (remove the quotes)"),
        ("model: {checkpointing: 1}\n", "my.yaml:2: model.checkpointing: expected true or false, got 1"),
        ("optim:\n", "my.yaml:2: optim: expected a section of keys, got None"),
        ("train: {steps: 1, steps: 2}\n", "my.yaml:2: key 'train.steps' occurs twice (first in line 2) (keep one"),
        ("data: {strata: {regions: 2}}\n", "my.yaml:2: data.strata.regions: expected a number >= 0 and <= 1, got 2"),
        ("data: {strata: {}}\n", "my.yaml: data.strata.regions: missing; expected a number >= 0 and <= 1"),
        ("data: {frame: px}\n", "my.yaml:2: data.frame: expected one of original_px, "),
        (
            "evaluation: {modes: [texual]}\n",
            "evaluation.modes.0: expected one of textual, grounded, crops, crops+union",
        ),
        ("alarms: {kl_max: -1}\n", "my.yaml:2: alarms.kl_max: expected a number > 0, or null, got -1"),
        ("model: {device: gpu}\n", "my.yaml:2: model.device: expected text of the form"),
        ("model: {min_pixels: 9, max_pixels: 4}\n", "my.yaml:2: model: min_pixels must not exceed max_pixels"),
        ("train: {evaluate_every: 5}\n", "my.yaml: train.evaluate_every needs records: set data.validation"),
        ("arms: {a: {train.stepz: 3}}\n", "my.yaml:2: arms.a.train.stepz: unknown key 'stepz' (did you mean 'steps'?)"),
        ("arms: {a: {optim: {lr: 9}}}\n", "my.yaml:2: arms.a.optim.lr: expected a number > 0 and <= 1, got 9"),
        ("arms: {a b: {}}\n", "my.yaml:2: arms: arm 'a b' must be a word"),
        ("arms: {a: {arms: {b: {}}}}\n", "my.yaml:2: arms: arm 'a' cannot hold arms"),
        ("judge: {kind: rulez}\n", "my.yaml:2: judge.kind: expected one of rules, offline, http, got 'rulez' (did you"),
        ("judge: {kind: http}\n", "my.yaml:2: judge: kind http needs url and model"),
        ("judge: {key: x}\n", "my.yaml:2: judge.key: unknown key 'key'"),
        ("? [a]\n: 1\n", "my.yaml:2: is not valid YAML"),
        ("'a..b': 1\n", "'a..b' is not a dotted key"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, text: str, expected: str) -> None:
    shown = message(tmp_path, GRPO + text)
    assert expected in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "my.yaml: method: missing; expected a section of keys"),
        ("method: grpo", "my.yaml:1: method: expected a section of keys, got 'grpo'"),
        ("method: {}", "my.yaml:1: method: needs a `name`"),
        ("method: {name: grop}", "my.yaml:1: method.name: unknown method 'grop' (did you mean 'grpo'?)"),
        ("method: {name: 'no.such:Thing'}", "my.yaml:1: method.name: cannot import 'no.such:Thing'"),
        (
            "method: {name: ivgr, preset: papre}",
            "my.yaml:1: method.preset: expected one of paper, release, got 'papre'",
        ),
        ("method: {name: ivgr, boxes: {matches: dual}}", "my.yaml:1: method.boxes.matches: unknown key 'matches'"),
        ("method: {name: ivgr, archive: {min_box: 2}}", "my.yaml:1: method.archive.min_box: expected a number > 0 and"),
        ("method: {name: ivgr, min_box: 0.5}", "(did you mean 'method.archive.min_box'?)"),
        ("method: {name: grpo, streams: {textual: {n: 0}}}", "my.yaml:1: method.streams.textual.n: expected a whole"),
        ("method: [", "my.yaml:1: is not valid YAML"),
        ("- a", "my.yaml: must hold sections"),
        ("3", "my.yaml: must hold sections"),
        ("a: &x 1\nb: *y\n", "my.yaml:2: is not valid YAML"),
    ],
)
def test_mistakes_around_the_method(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(tmp_path, text)


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    shown = message(tmp_path, GRPO + "optim: {lr: 9}\ntrain: {stepz: 1}\n")
    assert "my.yaml:2: optim.lr" in shown
    assert "; my.yaml:3: train.stepz" in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--train.steps", "many"], "command line: train.steps: expected a whole number >= 0, got 'many'"),
        (["--optim.inner-step", "2"], "command line: optim.inner_step: unknown key 'inner_step' (did you mean"),
        (["--train.steps"], "command line: --train.steps: needs a value"),
        (["--train.steps", "--optim.lr", "1"], "command line: --train.steps: needs a value"),
        (["train.steps", "5"], "command line: expected a key such as --optim.lr, got 'train.steps'"),
        (["--optim.betas", "[0.9"], "command line: --optim.betas: value '[0.9' is not valid YAML"),
        (["--optim.betas", "[0.9]"], "command line: optim.betas.1: missing"),
        (["--arms.a.train.stepz", "5"], "command line: arms.a.train.stepz: unknown key"),
    ],
)
def test_mistakes_on_the_command_line_say_so(tmp_path: Path, overrides: list[str], expected: str) -> None:
    assert expected in message(tmp_path, GRPO, *overrides)


def test_overrides_are_typed_and_win(tmp_path: Path) -> None:
    words = ["--optim.lr=2e-5", "--optim.betas", "[0.8, 0.99]", "--train.keep", "1", "--model", "embedded:qwen2_5_vl"]
    recipe = load(
        tmp_path, GRPO + "optim: {lr: 1e-3}\n", *words, "--data.validation", "scenes:easy", "--data.limit", "~"
    )
    assert recipe.optim.lr == 2e-5
    assert recipe.optim.betas == (0.8, 0.99)
    assert recipe.train.keep == 1
    assert recipe.model.name == "embedded:qwen2_5_vl"
    assert recipe.data.validation == "scenes:easy"
    assert recipe.data.limit is None


@pytest.mark.parametrize("written", ["1e-6", "1.0e-06", "0.000001", "1E-6"])
def test_numbers_in_any_notation_are_numbers(tmp_path: Path, written: str) -> None:
    assert load(tmp_path, GRPO + f"optim: {{lr: {written}}}\n").optim.lr == 1e-6
    assert load(tmp_path, GRPO, "--optim.lr", written).optim.lr == 1e-6


def test_negative_values_are_values_not_keys() -> None:
    assert parse_overrides(["--a.b", "-3", "--c=--d"]) == {"a.b": -3, "c": "--d"}


def test_arms_take_dotted_and_nested_overrides(tmp_path: Path) -> None:
    text = (
        GRPO + "optim: {lr: 1e-3, epochs: 2}\narms:\n  a: {optim.lr: 1e-4}\n  b: {optim: {lr: 1e-5}, train.steps: 3}\n"
    )
    recipe = load(tmp_path, text, "--train.seed", "7", "--arms.b.optim.lr", "1e-2")
    arms = recipe.arm_recipes()
    assert [arms[n].optim.lr for n in "ab"] == [1e-4, 1e-2]
    assert [arms[n].optim.epochs for n in "ab"] == [2, 2]
    assert [arms[n].train.seed for n in "ab"] == [7, 7]
    assert [arms[n].train.steps for n in "ab"] == [100, 3]
    assert load(tmp_path).arm_recipes() == {}


def test_another_method_or_preset_starts_its_section_afresh(tmp_path: Path) -> None:
    text = "method: {name: ivgr, preset: paper, weights: {box: 0.5}}\narms:\n  plain: {method: {name: grpo}}\n"
    text += "  release: {method.preset: release}\n  box: {method.weights.format: 2.0}\n"
    arms = load(tmp_path, text).arm_recipes()
    assert arms["plain"].method == {"name": "grpo"}
    assert arms["release"].method_config.weights.box == 1.0
    assert arms["release"].method_config.weights.validity == 1.0
    assert arms["box"].method_config.weights.box == 0.5
    assert arms["box"].method_config.weights.format == 2.0


@given(
    st.recursive(
        st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), max_size=3),
        lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(0, 3), max_size=3),
        max_leaves=8,
    ),
)
def test_merging_over_nothing_and_over_itself_changes_nothing(values: dict) -> None:
    assert merge({}, values) == values
    assert merge(values, values) == values
    assert merge(values, {}) == values
    assert nested(values) == values


def test_diff_names_keys_of_either_side(tmp_path: Path) -> None:
    a = load(tmp_path)
    b = load(tmp_path, "method: {name: treevgr}\noptim: {lr: 1e-3}\n")
    found = {d.key: (d.a, d.b) for d in diff(a, b)}
    assert found["optim.lr"] == (1e-6, 1e-3)
    assert found["method.name"] == ("grpo", "treevgr")
    assert found["method.box"] == (None, "dual")
    assert all(x != y for x, y in found.values())


def test_every_field_is_explained() -> None:
    for name in recipe_names():
        for line in explain(load_recipe(name)):
            assert line.expected, line.key
            assert line.description or line.key == "method.name", line.key
    lines = {line.key: line for line in explain(load_recipe("demo"))}
    assert lines["optim.lr"].value == 1.5e-4
    assert not lines["optim.lr"].is_default
    assert lines["optim.lr"].expected == "a number > 0 and <= 1"
    assert lines["train.keep"].is_default
    assert lines["judge.kind"].value == "offline"
    assert lines["method.weights.box"].value == 1.0


def test_every_section_field_has_a_description() -> None:
    for key, schema, _ in schema_fields(Recipe):
        assert schema.get("description"), key


def test_unknown_recipes_are_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no recipe named 'dmeo' .did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(UserError, match="no such recipe file"):
        load_recipe(tmp_path / "gone.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_recipe(tmp_path / "bad.yaml")


def test_a_run_folder_names_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(GRPO)
    assert recipe_path(tmp_path) == tmp_path / "recipe.yaml"
    assert load_recipe(tmp_path).method == {"name": "grpo"}


def test_recipes_are_plain_yaml_without_anchors() -> None:
    for name in recipe_names():
        text = recipe_path(name).read_text()
        assert isinstance(yaml.safe_load(text), dict)
        assert not any(token in text for token in ("<<:", " &", " *"))


def test_config_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from sightline.config import load_recipe, explain; explain(load_recipe('demo')); "
        "print([m for m in ('torch', 'transformers', 'PIL', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
