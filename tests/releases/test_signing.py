"""Signatures: made by publish, demanded on load and before promotion, checked by the standard's own command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from releases.channels import promote, rollback
from releases.describe import show, show_text
from releases.manifest import MANIFEST, load_release, verify
from releases.publish import sign_release
from releases.signing import make_keys, signature_name
from tests.releases.conftest import publish_small, write_files


@pytest.fixture
def keys(tmp_path, monkeypatch):
    secret, public = make_keys(tmp_path / "keys", "day-maker")
    monkeypatch.setenv("ONEREC_SIGNING_KEY", str(secret))
    monkeypatch.setenv("ONEREC_TRUSTED_KEYS", str(tmp_path / "keys"))
    return secret, public


def test_a_signed_release_says_by_whom_and_the_standard_tool_agrees(store, files, keys):
    release_id = publish_small(store, files)
    promote(store, release_id)
    assert "signed by day-maker" in show_text(show(store, release_id))
    assert keys[0].stat().st_mode & 0o077 == 0
    folder, _ = load_release(store, release_id)
    signature = folder / signature_name((folder / MANIFEST).read_bytes())
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--public_key", str(keys[1])]
    options = ["--signature", str(signature), "--ignore_unsigned_files", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_unsigned_foreign_and_edited_releases_are_refused(store, files, keys, tmp_path, monkeypatch):
    monkeypatch.delenv("ONEREC_TRUSTED_KEYS")
    monkeypatch.delenv("ONEREC_SIGNING_KEY")
    unsigned = publish_small(store, files)
    promote(store, unsigned)
    other, _ = make_keys(tmp_path / "other", "stranger")
    monkeypatch.setenv("ONEREC_SIGNING_KEY", str(other))
    foreign = publish_small(store, write_files(tmp_path / "b", 2), day="2022-05-06")
    promote(store, foreign)
    monkeypatch.setenv("ONEREC_TRUSTED_KEYS", str(keys[0].parent))
    with pytest.raises(ValueError, match="not signed"):
        rollback(store)
    with pytest.raises(ValueError, match="by no trusted key"):
        load_release(store, foreign)
    with pytest.raises(ValueError, match="by no trusted key"):
        publish_small(store, write_files(tmp_path / "c", 3))  # the publisher learns it before it writes
    monkeypatch.setenv("ONEREC_SIGNING_KEY", str(keys[0]))
    sign_release(store, unsigned)
    assert rollback(store).release_id == unsigned
    folder = store.local(f"releases/{unsigned}")
    edited = json.loads((folder / MANIFEST).read_text()) | {"code_commit": "somebody else's"}
    (folder / MANIFEST).write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="not signed"):
        verify(folder)


def test_settings_that_cannot_work_are_named(store, files, keys, tmp_path, monkeypatch):
    monkeypatch.delenv("ONEREC_SIGNING_KEY")
    with pytest.raises(ValueError, match="set ONEREC_SIGNING_KEY"):
        publish_small(store, files)
    monkeypatch.setenv("ONEREC_SIGNING_KEY", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="cannot sign"):
        publish_small(store, files)
    monkeypatch.setenv("ONEREC_SIGNING_KEY", str(keys[0]))
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("ONEREC_TRUSTED_KEYS", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=r"no \*\.pub\.pem"):
        publish_small(store, files)
    with pytest.raises(ValueError, match="another name"):
        make_keys(keys[0].parent, "day-maker")
    assert store.children("releases") == []
