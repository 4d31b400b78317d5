from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sightline.answers.english import ENGLISH
from sightline.answers.http import HttpJudge
from sightline.answers.judge import JudgeRequest, RulesJudge, build_judge, named_lexicon
from sightline.answers.judge_config import JudgeConfig
from sightline.answers.offline import OfflineJudge
from sightline.errors import UserError


def test_kinds() -> None:
    assert isinstance(build_judge(JudgeConfig(kind="rules")), RulesJudge)
    assert isinstance(build_judge(JudgeConfig()), OfflineJudge)


def test_http_takes_its_key_from_a_file_and_caches_in_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" secret \n")
    config = JudgeConfig(kind="http", url="http://127.0.0.1:9/v1", model="m", key_file=str(tmp_path / "key"))
    judge = build_judge(config, run_folder=tmp_path)
    assert isinstance(judge, HttpJudge)
    assert judge._settings["api_key"] == "secret"
    assert judge.cache.path == tmp_path / "judge.jsonl"
    assert "secret" not in config.model_dump_json()
    judge.close()


def test_http_needs_url_and_model() -> None:
    with pytest.raises(ValidationError, match="needs url and model"):
        JudgeConfig(kind="http")


def test_unknown_keys_are_errors() -> None:
    with pytest.raises(ValidationError):
        JudgeConfig.model_validate({"kindd": "rules"})


@pytest.mark.parametrize("values", [{"samples": "4"}, {"samples": 4.0}, {"timeout": float("inf")}, {"url": 3}])
def test_values_are_not_coerced(values: dict) -> None:
    with pytest.raises(ValidationError):
        JudgeConfig.model_validate(values)


def test_reading_of_replies_belongs_to_a_server() -> None:
    for kind in ("rules", "offline"):
        with pytest.raises(ValidationError, match="needs kind http"):
            JudgeConfig.model_validate({"kind": kind, "reading": "release"})
    config = JudgeConfig(kind="http", url="http://127.0.0.1:9/v1", model="m", reading="release")
    judge = build_judge(config)
    assert isinstance(judge, HttpJudge)
    assert judge.reading == "release"
    judge.close()


def test_a_missing_key_file_is_a_clear_error(tmp_path: Path) -> None:
    config = JudgeConfig(kind="http", url="http://x/v1", model="m", key_file=str(tmp_path / "none"))
    with pytest.raises(UserError, match="key_file"):
        build_judge(config)


def test_lexicon_by_name() -> None:
    assert named_lexicon("english") is ENGLISH
    assert named_lexicon("sightline.answers.english:ENGLISH") is ENGLISH
    for name in ("french", "sightline.answers.english:_COLORS", "sightline.answers.english:NONE"):
        with pytest.raises(UserError, match="lexicon"):
            named_lexicon(name)


def test_rules_judge_masks_what_it_cannot_do() -> None:
    judge = RulesJudge()
    consistency = JudgeRequest(kind="consistency", question="?", reference="a", candidate="a")
    open_answer = JudgeRequest(kind="answer", question="?", reference="a cup", candidate="a mug")
    failed, undecided = judge.judge([consistency, open_answer])
    assert (failed.value, failed.failed) == (None, True)
    assert (undecided.value, undecided.failed) == (0.0, False)
    assert judge.stats()["undecided"] == 1
    judge.close()
