"""Publishing: the same contents are the same release, damage is refused by name, a kill leaves nothing half done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from releases.manifest import MANIFEST, load_release, verify
from tests.releases.conftest import publish_small, write_files
from tests.releases.made_up import made_up


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_publish_twice_is_one_release_and_changes_nothing(store, files):
    first = publish_small(store, files)
    before = tree(store.local("releases"))
    assert publish_small(store, files, metrics={"other": 1}) == first
    assert tree(store.local("releases")) == before
    assert store.children("releases") == [first]


def test_id_depends_on_contents_and_day_only(store, files, tmp_path):
    first = publish_small(store, files)
    assert first.startswith("2022-05-05-") and len(first) == len("2022-05-05-") + 12
    moved = write_files(tmp_path / "elsewhere", 1)
    assert publish_small(store, moved, code_commit="other", seed=8) == first
    made_up(moved["items.parquet"], "x")
    assert publish_small(store, moved) != first
    assert publish_small(store, files, day="2022-05-06") == first.replace("05-05", "05-06")


def test_manifest_says_what_the_release_is(store, files):
    folder, manifest = load_release(store, publish_small(store, files))
    assert manifest.data_interval == {"start": "2022-05-05", "end": "2022-05-06"}
    assert {f.path for f in manifest.files} == set(files)
    assert manifest.gate is None and manifest.schema == 1
    assert (folder / "model/config.json").read_bytes() == files["model/config.json"].read_bytes()


def test_one_changed_byte_is_refused_by_name(store, files):
    release_id = publish_small(store, files)
    path = store.local(f"releases/{release_id}/model/model.safetensors")
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"model/model.safetensors: expected sha256 \w{64}, got \w{64}"):
        load_release(store, release_id)
    with pytest.raises(ValueError, match="mixed or damaged"):
        publish_small(store, files)


def test_a_mixed_set_is_refused_by_name(store, files, tmp_path):
    one = store.local(f"releases/{publish_small(store, files)}")
    two = store.local(f"releases/{publish_small(store, write_files(tmp_path / 'b', 2))}")
    (one / "tokenizer/trie.safetensors").write_bytes((two / "tokenizer/trie.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"tokenizer/trie\.safetensors: expected sha256"):
        verify(one)
    (two / "tokenizer/extra.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"tokenizer/extra\.bin is not in the manifest"):
        verify(two)


@pytest.mark.parametrize("damage", ["missing", "short", "link"])
def test_other_damage_is_refused(store, files, damage, tmp_path):
    folder = store.local(f"releases/{publish_small(store, files)}")
    path = folder / "items.parquet"
    data = path.read_bytes()
    path.unlink()
    if damage == "short":
        path.write_bytes(data[:-1])
    if damage == "link":
        (tmp_path / "target").write_bytes(data)
        path.symlink_to(tmp_path / "target")
    with pytest.raises(ValueError, match=r"items\.parquet"):
        verify(folder)


@pytest.mark.parametrize("path", ["../escape", "/absolute", "a//b", "a/../b", ".hidden", "a\\b"])
def test_paths_outside_the_release_are_refused(store, files, path):
    with pytest.raises(ValueError, match="safe object key"):
        publish_small(store, files | {path: files["items.parquet"]})
    folder = store.local(f"releases/{publish_small(store, files)}")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["path"] = path
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="safe object key"):
        verify(folder)


def test_an_edited_manifest_is_refused(store, files):
    folder = store.local(f"releases/{publish_small(store, files)}")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["sha256"] = "0" * 64
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="was edited"):
        verify(folder)


def test_bad_input_is_named(store, files):
    with pytest.raises(ValueError, match="NaN"):
        publish_small(store, files, metrics={"recall": float("nan")})
    with pytest.raises(ValueError, match=r"tokenizer/trie\.safetensors"):
        publish_small(store, {k: v for k, v in files.items() if "trie" not in k})
    with pytest.raises(ValueError, match="no release 2022-05-05-000000000000"):
        load_release(store, "2022-05-05-000000000000")
    assert store.children("releases") == []


PUBLISH_AND_DIE = """
import os, signal, sys
from pathlib import Path
from releases import object_store
from releases.object_store import DirectoryStore
from tests.releases.conftest import publish_small, write_files
from tests.releases.made_up import made_up

root, function, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
owner = os if function in ("fsync", "rename") else object_store
real, calls = getattr(owner, function), 0

def dying(*args):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

files = write_files(root / "built", 1)
setattr(owner, function, dying)
publish_small(DirectoryStore(root / "store"), files)
"""


@pytest.mark.parametrize(
    ("function", "count", "visible"),
    [
        ("fsync", 1, False),  # in the first file
        ("_copy", 4, False),  # between files
        ("_write", 1, False),  # all files, no manifest
        ("fsync", 7, False),  # in the manifest
        ("rename", 1, False),  # all staged, not visible
        ("_sync_dir", 5, True),  # renamed, folder not yet synced
    ],
)
def test_killed_anywhere_leaves_all_or_nothing_and_the_next_publish_mends(
    store, files, tmp_path, function, count, visible
):
    command = [sys.executable, "-c", PUBLISH_AND_DIE, str(tmp_path), function, str(count)]
    repository = Path(__file__).parents[2]
    killed = subprocess.run(command, cwd=repository, env=os.environ | {"PYTHONPATH": str(repository)}, check=False)
    assert killed.returncode == -signal.SIGKILL
    seen = store.children("releases")
    assert len(seen) == visible
    for release_id in seen:
        load_release(store, release_id)
    release_id = publish_small(store, files)
    assert store.children("releases") == [release_id]
    load_release(store, release_id)
    assert list((store.root / ".staging").iterdir()) == []
