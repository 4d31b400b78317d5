"""Where a name leads: folders, the cache, the Hub; what is told when there is no way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from sightline.cli import main
from sightline.errors import UserError
from sightline.policy.hub import checkpoint_folder

NAME = "Qwen/Qwen2.5-VL-3B-Instruct"
Download = Callable[..., str]


class Hub:
    """Stands in for the client: an empty cache or a snapshot in it, and whatever the network does."""

    def __init__(self, online: Download, cached: str | None = None, info: BaseException | None = None) -> None:
        self.online, self.cached, self.info, self.calls = online, cached, info, list[dict[str, Any]]()

    def __call__(self, repository: str, *, local_files_only: bool = False, **given: Any) -> str:
        self.calls.append({"repository": repository, "local": local_files_only, **given})
        if not local_files_only:
            return self.online(repository)
        if self.cached is None:
            raise errors.LocalEntryNotFoundError("not in the cache")
        return self.cached

    def model_info(self, *_: Any, **__: Any) -> SimpleNamespace:
        if self.info is not None:
            raise self.info
        files = {"a.safetensors": 7 * 10**9, "b.safetensors": 5 * 10**8, "pytorch_model.bin": 10**12, "x.py": 10**12}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])


def fails(error: BaseException) -> Download:
    def download(_: str) -> str:
        raise error

    return download


def http(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    return kind("refused", response=SimpleNamespace(headers={}, request=None, status_code=404))  # type: ignore[arg-type]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hub], Hub]:
    def install(hub: Hub) -> Hub:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
        monkeypatch.setattr(huggingface_hub, "model_info", hub.model_info)
        return hub

    return install


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    for name in ("config.json", "a.safetensors", "b.safetensors"):
        (tmp_path / name).write_text("{}")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("lost", ["b.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_snapshot_with_files_missing_is_fetched(
    use: Callable[[Hub], Hub], snapshot: Path, lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (snapshot / lost).unlink()
    hub = use(Hub(lambda _: str(snapshot), cached=str(snapshot)))
    assert checkpoint_folder(NAME) == snapshot
    assert [c["local"] for c in hub.calls] == [True, False]
    assert NAME in capsys.readouterr().err


def test_what_is_whole_in_the_cache_needs_no_network(use: Callable[[Hub], Hub], snapshot: Path) -> None:
    hub = use(Hub(fails(AssertionError("the network was asked")), cached=str(snapshot)))
    assert checkpoint_folder(NAME) == snapshot
    assert [c["local"] for c in hub.calls] == [True]


def test_a_download_says_that_it_goes_on(
    use: Callable[[Hub], Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = use(Hub(lambda _: str(tmp_path)))
    assert checkpoint_folder(NAME + "@v2") == tmp_path
    assert (hub.calls[-1]["repository"], hub.calls[-1]["revision"]) == (NAME, "v2")
    patterns = hub.calls[-1]["allow_patterns"]
    assert not any(p.endswith((".py", ".bin", ".pt", "*")) for p in patterns)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert f"{NAME} (7.5 GB)" in told[0]
    assert "the same command goes on" in told[0]


def test_one_of_several_processes_speaks(
    use: Callable[[Hub], Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(Hub(lambda _: str(tmp_path)))
    monkeypatch.setenv("RANK", "1")
    assert checkpoint_folder(NAME) == tmp_path
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (OSError("no network"), "the Hub cannot be reached"),
        (http(errors.HfHubHTTPError).__class__.__mro__[1]("no route"), "the Hub cannot be reached"),
        (http(errors.RepositoryNotFoundError), "is no model on the Hub"),
        (http(errors.RevisionNotFoundError), "is no model on the Hub with a revision 'v9'"),
        (http(errors.GatedRepoError), "asks for its terms to be accepted first"),
        (http(errors.HfHubHTTPError), "cannot be had from the Hub: refused"),
    ],
)  # fmt: skip
def test_no_way_to_the_hub_is_one_line(
    use: Callable[[Hub], Hub], error: BaseException, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    use(Hub(fails(AssertionError("fetched")), info=error))
    name = f"{NAME}@v9" if "v9" in what else NAME
    with pytest.raises(UserError, match=what) as caught:
        checkpoint_folder(name)
    assert "\n" not in str(caught.value)
    assert NAME in str(caught.value)
    assert main(["eval", "--model", name, "--limit", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("error", [ConnectionResetError("peer"), OSError(28, "No space left on device")])
def test_a_download_that_is_cut_short(use: Callable[[Hub], Hub], error: BaseException) -> None:
    use(Hub(fails(error)))
    with pytest.raises(UserError, match=r"was cut short: .*(peer|No space).*goes on where it stopped"):
        checkpoint_folder(NAME)


def test_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """The real client, told to stay offline, with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="neither a folder here nor whole in the cache") as caught:
        checkpoint_folder(NAME)
    assert "hf download" in str(caught.value)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["/no/such/folder", "no/such/folder", "nowhere", "./two/deep", "~/nowhere"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        checkpoint_folder(name)


@pytest.mark.parametrize("name", ["a b/c d", "owner/--bad--"])
def test_a_name_that_no_model_can_have(name: str) -> None:
    with pytest.raises(UserError, match="nor the name of a model on the Hub"):
        checkpoint_folder(name)


@pytest.mark.parametrize("family", ["qwen9", "../checkpoints/qwen3_vl", ""])
def test_an_embedded_policy_that_is_not_shipped(family: str) -> None:
    with pytest.raises(UserError, match="no embedded policy"):
        checkpoint_folder(f"embedded:{family}")
