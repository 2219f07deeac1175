"""`onerec eval` on a published release: by id, by channel, on a day and on a file; what goes wrong is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cli.main import main
from kfp_components.workspace import Workspace
from models.onerec.config import OneRecConfig
from models.onerec.model import OneRec
from models.training.checkpoint import Tokenizer, save_model
from releases.channels import promote
from releases.object_store import DirectoryStore
from releases.publish import publish
from tests.models.conftest import world  # noqa: F401  (the synthetic source of the models' tests)

DAY = "2022-05-06"


@pytest.fixture(scope="module")
def root(world, tmp_path_factory) -> Path:  # noqa: F811
    """A workspace with one release, two training days and one day of evaluation rows."""
    torch.manual_seed(0)
    root, made = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("made")
    w = Workspace(root=str(root), source="logs")
    tokenizer = Tokenizer.load(world.tokenizer)
    config = OneRecConfig(
        codebook_size=16, items=len(tokenizer.catalogue), static_features=3, d_model=16, heads=2, ffn_dim=16
    )
    save_model(OneRec(config, torch.from_numpy(tokenizer.sid_NL)), made)
    names = ("sid_table.parquet", "trie.safetensors", "codebooks.safetensors")
    files = {f"tokenizer/{name}": world.tokenizer / name for name in names}
    files |= {f"model/{name}": made / name for name in ("config.json", "model.safetensors")}
    release = publish(
        store=DirectoryStore(w.store), day=DAY, source="logs", files=files | {"items.parquet": world.items},
        summaries={}, metrics={}, data={}, parents=[], seed=0, code_commit="", environment={},
    )  # fmt: skip
    promote(DirectoryStore(w.store), release, channel="production", reason="test")
    for day, rows in zip(("2022-05-05", DAY), world.training):
        put(rows, w.partition("training", day))
    put(world.evaluation, w.partition("evaluation", DAY))
    return root


def put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)


def test_a_channel_and_a_day_give_the_table(root: Path, capsys) -> None:
    assert main(["eval", "production", DAY, "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "100.0% of places legal" in out and "95 % of recall@50" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("all ", "heavy users", "light users"))]
    assert rows[0][:2] == ["all", "onerec"] and rows[1][:3] == ["all", "most", "popular"]


def test_json_by_id_on_a_file_is_the_same_report(root: Path, world, capsys) -> None:  # noqa: F811
    assert main(["eval", "production", DAY, "--root", str(root), "--json"]) == 0
    by_channel = json.loads(capsys.readouterr().out)
    assert main(["eval", by_channel["release"], str(world.evaluation), "--root", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == by_channel
    assert main(["eval", "production", DAY, "--root", str(root), "--json", "--users", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["users"] == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["production", "2022-05-09"], "does not exist; run `onerec daily` for that day"),
        (["production", "rows.parquet"], "give a day, or a file that the features step wrote"),
        (["candidate", DAY], "channel candidate names no release"),
        (["2022-05-06-000000000000", DAY], "there is no release"),
        (["production", DAY, "--users", "0"], "--users is 0"),
    ],
)
def test_errors_say_what_to_do(root: Path, arguments: list[str], said: str, capsys) -> None:
    assert main(["eval", *arguments, "--root", str(root)]) == 1
    assert said in capsys.readouterr().err
