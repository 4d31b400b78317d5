"""Whatever does not fit is one error before any weight is read, with the names of the tensors and of the file."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from released import write_released
from sightline.cli import main
from sightline.errors import UserError
from sightline.policy.load import load_policy
from sightline.policy.weights import INDEX, SINGLE, Misfit, rows

UP = "model.language_model.layers.1.mlp.up_proj.weight"
EMBEDDINGS = "model.language_model.embed_tokens.weight"
SHARDS = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three small checkpoints: one file and tied, three files and not tied, the released layout in two files."""
    root = tmp_path_factory.mktemp("written")
    write_released(root / "tied", "Qwen/Qwen3-VL-2B-Instruct", depth=2)
    write_released(root / "sharded", "Qwen/Qwen3-VL-8B-Instruct", depth=2, files=3)
    write_released(root / "released", "Qwen/Qwen2.5-VL-3B-Instruct", depth=2)
    return {name: root / name for name in ("tied", "sharded", "released")}


@pytest.fixture
def copy(written: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(written[name], tmp_path / name))


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def refusal(folder: Path) -> UserError:
    with pytest.raises(UserError) as caught:
        load_policy(folder)
    assert len(caught.value.rows) <= 13
    return caught.value


@pytest.mark.parametrize(
    ("edit", "row"),
    [
        (lambda t: t.pop(UP), rf"missing +{UP} +40x32"),
        (lambda t: t.update({"model.extra": torch.zeros(3)}), rf"unexpected +model\.extra +3 +{SINGLE}"),
        (lambda t: t.update({UP: torch.zeros(3, 2)}), rf"of another shape +{UP} +3x2 where 40x32 is expected"),
        (lambda t: t.update({UP: t[UP].char()}), rf"of another number format +{UP} +I8; read are BF16.* {SINGLE}"),
        (
            lambda t: t.update({UP: t[UP].to(torch.float8_e4m3fn)}),
            rf"of another number format +{UP} +F8_E4M3; read are BF16.* {SINGLE}",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": t[EMBEDDINGS].clone()}),
            r"twice +model\.\S*embed_tokens\.weight +also as model\.\S*embed_tokens\.weight",
        ),
        (
            lambda t: t.update({"lm_head.weight": t[EMBEDDINGS] + 1}),
            rf"differs +lm_head\.weight +from {EMBEDDINGS}, to which the configuration ties it",
        ),
    ],
    ids=["missing", "unexpected", "shape", "int8", "float8", "twice", "untied"],
)  # fmt: skip
def test_one_tensor_that_does_not_fit(
    copy: Callable[[str], Path], edit: Callable[[dict[str, torch.Tensor]], None], row: str
) -> None:
    folder = copy("tied")
    change(folder / SINGLE, edit)
    error = refusal(folder)
    assert len(error.rows) == 1
    assert re.search(row, error.rows[0]), error.rows
    assert str(folder) in error.line


def test_a_tied_matrix_may_stand_under_either_name_or_both(copy: Callable[[str], Path]) -> None:
    folder = copy("tied")
    before = load_policy(folder).model.get_output_embeddings().weight
    change(folder / SINGLE, lambda t: t.update({"lm_head.weight": t[EMBEDDINGS].clone()}))
    assert torch.equal(load_policy(folder).model.get_output_embeddings().weight, before)
    change(folder / SINGLE, lambda t: t.pop(EMBEDDINGS))
    model = load_policy(folder).model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_an_output_head_of_its_own_must_be_there(copy: Callable[[str], Path]) -> None:
    folder = copy("sharded")
    name = next(s for s in SHARDS if "lm_head.weight" in load_file(folder / s))
    change(folder / name, lambda t: t.pop("lm_head.weight"))
    edit_index(folder, lambda told: told.pop("lm_head.weight"))
    assert re.match(r"missing +lm_head\.weight", refusal(folder).rows[0])


@pytest.mark.parametrize("kept", [0.4, 0.99])
def test_a_truncated_shard_names_the_tensors_beyond_its_end(copy: Callable[[str], Path], kept: float) -> None:
    folder = copy("sharded")
    path = folder / SHARDS[1]
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    error = refusal(folder)
    inside = load_file_names(content)
    assert all(row.startswith("cut off") and SHARDS[1] in row for row in error.rows)
    named = [name for name in inside if any(name in row for row in error.rows)]
    assert named
    assert "cut off" in error.line
    assert "missing" not in error.line


def load_file_names(content: bytes) -> list[str]:
    length = int.from_bytes(content[:8], "little")
    return [n for n in json.loads(content[8 : 8 + length]) if n != "__metadata__"]


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff" * 200, b"\x10" + b"\0" * 7 + b"not json, sixteen"])
def test_a_file_without_a_header_is_named(copy: Callable[[str], Path], content: bytes) -> None:
    folder = copy("sharded")
    (folder / SHARDS[2]).write_bytes(content)
    assert SHARDS[2] in refusal(folder).line


def edit_header(path: Path, edit: Callable[[dict[str, Any]], bytes | None]) -> None:
    """Changes the header of a file and leaves the numbers; the edit may also return the header's bytes."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    raw = edit(header) or json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + content[8 + length :])


def moved(begin: int, end: int) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        first, last = header[UP]["data_offsets"]
        header[UP]["data_offsets"] = [first + begin, last + end]

    return edit


def doubled(header: dict[str, Any]) -> bytes:
    plain = json.dumps(header).encode()
    return plain[:-1] + f", {json.dumps(UP)}: {json.dumps(header[UP])}}}".encode()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (moved(0, -2), rf"damaged +{UP} +2558 bytes where 40x32 in BF16 takes 2560"),
        (moved(-2560, -2560), rf"damaged +{UP} +begins at byte \d+, where \d+ is the next"),
        (lambda h: h[UP].update(dtype="F64"), rf"damaged +{UP} +2560 bytes where 40x32 in F64 takes 10240"),
        (lambda h: h[UP].update(data_offsets=["0", "1"]), f"{UP} has no shape, format and place"),
        (lambda h: h[UP].update(shape="40x32"), f"{UP} has no shape, format and place"),
        (lambda h: h.update({UP: None}), f"{UP} has no shape, format and place"),
        (doubled, f"'{UP}' stands in it twice"),
        (lambda _: b'{"a":' * 200_000, "the header is damaged"),
        (lambda _: b"[]", "no table of tensors"),
    ],
    ids=["short", "over another", "format", "no numbers", "no shape", "nothing", "twice", "deep", "list"],
)
def test_a_header_that_cannot_be_so_names_the_tensor(
    copy: Callable[[str], Path], edit: Callable[[dict[str, Any]], bytes | None], said: str
) -> None:
    folder = copy("tied")
    edit_header(folder / SINGLE, edit)
    error = refusal(folder)
    assert re.search(said, "\n".join([error.line, *error.rows]))


def test_a_folder_in_place_of_the_file_is_told(copy: Callable[[str], Path]) -> None:
    folder = copy("tied")
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()
    assert refusal(folder).line == f"{folder / SINGLE}: this is no file"


def test_a_pointer_of_git_lfs_is_told_as_such(copy: Callable[[str], Path]) -> None:
    folder = copy("tied")
    (folder / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    assert "git lfs pull" in refusal(folder).line


def test_an_index_that_names_a_file_that_is_not_there(copy: Callable[[str], Path]) -> None:
    folder = copy("sharded")
    names = list(load_file(folder / SHARDS[1]))
    (folder / SHARDS[1]).unlink()
    error = refusal(folder)
    assert "in a file that is not there" in error.line
    assert len(error.rows) == 1
    assert any(n in error.rows[0] for n in names)
    assert f"and {len(names) - 1} more" in error.rows[0]
    assert SHARDS[1] in error.rows[0]


def test_an_index_that_does_not_fit_its_files(copy: Callable[[str], Path]) -> None:
    folder = copy("sharded")
    first = next(n for n in json.loads((folder / INDEX).read_text())["weight_map"] if "layers.0" in n)
    edit_index(folder, lambda told: told.update({first: SHARDS[2]}))
    kinds = {row.split("  ")[0] for row in refusal(folder).rows}
    assert kinds == {"not where the index says", "not in the index"}


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', "not json", "[" * 200_000])
def test_what_is_no_index(copy: Callable[[str], Path], content: str) -> None:
    folder = copy("sharded")
    (folder / INDEX).write_text(content)
    assert INDEX in refusal(folder).line


@pytest.mark.parametrize("name", ["config.json", "..", "", 3, None])
def test_an_index_names_safetensors_files(copy: Callable[[str], Path], name: object) -> None:
    folder = copy("sharded")
    edit_index(folder, lambda told: told.update({UP: name}))  # type: ignore[dict-item]
    assert f"names {name!r}, which is no safetensors file" in refusal(folder).line


def test_an_index_stays_in_its_folder(copy: Callable[[str], Path]) -> None:
    folder = copy("sharded")
    edit_index(folder, lambda told: told.update({UP: "../elsewhere.safetensors"}))
    assert "leads out of its folder: ../elsewhere.safetensors" in refusal(folder).line


def test_other_formats_are_not_read(copy: Callable[[str], Path]) -> None:
    folder = copy("tied")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()
    assert "pytorch_model.bin" in refusal(folder).line


def test_quantised_weights_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("tied")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    assert "quantised" in refusal(folder).line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "wide"), ("num_attention_heads", None), ("num_attention_heads", 0), ("head_dim", -1),
        ("hidden_act", "odd"), ("vocab_size", 10**30),
    ],
)  # fmt: skip
def test_a_config_that_makes_no_model_is_named(copy: Callable[[str], Path], key: str, value: object) -> None:
    folder = copy("tied")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert "config.json" in refusal(folder).line


def test_the_weights_of_another_size_make_a_short_table(copy: Callable[[str], Path]) -> None:
    folder, other = copy("sharded"), copy("released")
    shutil.copyfile(folder / "config.json", other / "config.json")
    shutil.copyfile(folder / "preprocessor_config.json", other / "preprocessor_config.json")
    error = refusal(other)
    assert re.search(r"\d+ unexpected.*\d+ missing|\d+ missing.*\d+ unexpected", error.line)
    assert any(re.search(r"layers\.\*\.\S+, 2 times", row) for row in error.rows)
    assert re.match(r"and \d+ more rows", error.rows[-1])


def test_the_command_line_prints_the_table(copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy("tied")
    change(folder / SINGLE, lambda t: t.pop(UP))
    assert main(["eval", "--model", str(folder), "--limit", "1"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith("error: ")
    assert re.match(rf"  missing +{UP}", told[1])


def test_rows_of_a_kind_come_together_where_they_are_many() -> None:
    few = [Misfit("missing", f"layers.{i}.up", "8x4") for i in range(3)]
    assert rows(few) == [f"missing  layers.{i}.up  8x4" for i in range(3)]
    many = [Misfit("cut off", f"layers.{i}.up", "", f"{i % 2}.safetensors") for i in range(40)]
    assert rows(many) == [
        "cut off  layers.0.up and 19 more  0.safetensors", "cut off  layers.1.up and 19 more  1.safetensors",
    ]  # fmt: skip
    different = [Misfit("unexpected", f"{chr(97 + i)}.weight", "3", "x") for i in range(20)]
    assert len(rows(different)) == 13
    assert rows(different)[-1] == "and 8 more rows"
