"""Faults of releases themselves: damage, mixtures, files made to harm, clocks, signatures, a full disk."""

from __future__ import annotations

import json
import os
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fault import cases, fault

from releases.channels import promote, read_channel
from releases.contents import check_contents
from releases.manifest import MANIFEST, Manifest, released, verify
from releases.object_store import DirectoryStore
from releases.signing import make_keys
from tests.releases.conftest import publish_small, write_files

REPOSITORY = Path(__file__).resolve().parents[2]


def two(tmp_path: Path) -> tuple[DirectoryStore, list[str]]:
    """A store with two releases, the first in production."""
    store = DirectoryStore(tmp_path / "store")
    made = [publish_small(store, write_files(tmp_path / str(i), i), day=f"2022-05-0{i}") for i in (1, 2)]
    promote(store, made[0])
    return store, made


def refused(store: DirectoryStore, made: list[str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        promote(store, made[1])
    assert read_channel(store, "production").release_id == made[0]


@fault(area="releases", injection="one bit of the weights", expected="refused by the file's name; production stays")
def flipped_bit_on_disk(tmp_path: Path) -> str:
    store, made = two(tmp_path)
    path = store.local(f"releases/{made[1]}/model/model.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(store, made, r"model\.safetensors: expected sha256")
    return "refused"


@fault(area="releases", injection="the SID table of another release", expected="refused by the table's name")
def wrong_sid_table_with_a_model(tmp_path: Path) -> str:
    store, made = two(tmp_path)
    one, other = (store.local(f"releases/{r}/tokenizer/sid_table.parquet") for r in made)
    other.write_bytes(one.read_bytes())
    refused(store, made, r"sid_table\.parquet: expected")
    return "refused"


@fault(area="releases", injection="a tree without its manifest", expected="in no list, never promoted")
def half_published_release(tmp_path: Path) -> str:
    store, made = two(tmp_path)
    store.local(f"releases/{made[1]}/{MANIFEST}").unlink()
    assert released(store) == [made[0]]
    refused(store, made, "no release")
    return "invisible"


@fault(area="releases", injection="a publisher whose clock is a day ahead", expected="not promoted; says the clock")
def clock_skew_of_a_publisher(tmp_path: Path) -> str:
    store, made = two(tmp_path)
    path = store.local(f"releases/{made[1]}/{MANIFEST}")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created_at": "2999-01-01T00:00:00+00:00"}))
    refused(store, made, "clock")
    return "refused, the clock named"


@fault(area="security", injection="a signature by a key nobody trusts", expected="refused on load and promotion")
def release_signed_by_a_stranger(tmp_path: Path) -> str:
    with pytest.MonkeyPatch.context() as patch:
        secret, _ = make_keys(tmp_path / "stranger")
        make_keys(tmp_path / "trusted")
        patch.setenv("ONEREC_SIGNING_KEY", str(secret))
        store, made = two(tmp_path)
        patch.setenv("ONEREC_TRUSTED_KEYS", str(tmp_path / "trusted"))
        refused(store, made, "no trusted key")
    return "refused"


@fault(
    area="security",
    injection="manifests with `..`, deep nesting, wrong kinds, a file twice, 17 MiB",
    expected="each refused with a ValueError",
)
def malicious_manifest(tmp_path: Path) -> str:
    store, made = two(tmp_path)
    whole = json.loads(store.get(f"releases/{made[0]}/{MANIFEST}"))
    first = whole["files"][0]
    bad = [
        b"[" * 200_000,
        b'"' + b"x" * (17 << 20) + b'"',
        b"\xff\xfe",
        *(
            json.dumps(whole | change).encode()
            for change in (
                {"files": [first | {"path": "../../etc/cron.d/x"}]},
                {"files": [first | {"path": "/etc/passwd"}]},
                {"files": [first, first]},
                {"files": [first | {"size": -1}]},
                {"files": [first | {"sha256": None}]},
                {"files": [["a", 1, "b"]]},
                {"files": {}},
                {"parents": "x"},
                {"data_interval": {}},
                {"release_id": 7},
            )
        ),
    ]
    for data in bad:
        with pytest.raises(ValueError):
            Manifest.from_bytes(data, "m")
    return f"{len(bad)} manifests refused"


@fault(
    area="security",
    injection="safetensors headers that claim too much, overlap, or are no JSON",
    expected="each refused before a library opens the file",
)
def malicious_safetensors_header(tmp_path: Path) -> str:
    def made(header: bytes, body: bytes = b"\0" * 16, length: int | None = None) -> bytes:
        return struct.pack("<Q", len(header) if length is None else length) + header + body

    tensor = '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
    bad = [
        b"",
        b"\xff" * 8,
        made(b"{}", length=1 << 62),
        made(b"[" * 100_000),
        made((tensor % ("4", "0,17")).encode()),
        made((tensor % ("1099511627776", "0,16")).encode()),
        made((tensor % ("-4", "0,16")).encode()),
        made((tensor % ("2", "8,16")).encode()),
        made(b'{"a":{"dtype":"OBJ","shape":[4],"data_offsets":[0,16]}}'),
    ]
    path = tmp_path / "x.safetensors"
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="refusing it"):
            check_contents(path, path.name)
    path.write_bytes(made((tensor % ("4", "0,16")).encode()))
    check_contents(path, path.name)
    return f"{len(bad)} files refused"


@fault(
    area="security",
    injection="Parquet files cut, with a false footer, or with a flipped footer",
    expected="each refused with a ValueError, no crash",
)
def malicious_parquet_file(tmp_path: Path) -> str:
    good = write_files(tmp_path / "f", 1)["items.parquet"].read_bytes()
    path = tmp_path / "x.parquet"
    bad = [b"", b"PAR1", good[:-9], b"PAR1" + b"\xff" * 4 + b"PAR1", good[:-8] + b"\xff\xff\xff\x7fPAR1", good[4:]]
    bad.append(good[:-200] + b"\x15" * 192 + good[-8:])
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="refusing it"):
            check_contents(path, path.name)
    return f"{len(bad)} files refused"


@fault(area="security", injection="a compiled program whose archive leaves its folder", expected="refused by member")
def zip_slip_in_a_program(tmp_path: Path) -> str:
    for number, name in enumerate(("../../outside", "/etc/passwd", "a/../../b", "a\\..\\b")):
        path = tmp_path / f"{number}.pt2"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(ValueError, match="leaves the folder"):
            check_contents(path, path.name)
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"\0" * (64 << 20))
    with pytest.raises(ValueError, match="grow"):
        check_contents(tmp_path / "bomb.pt2", "bomb.pt2")
    return "four paths and a bomb refused"


@fault(area="security", injection="a link in a release folder to a file outside", expected="refused by name")
def link_out_of_a_release(tmp_path: Path) -> str:
    store, made = two(tmp_path)
    folder = store.local(f"releases/{made[1]}")
    data = (folder / "items.parquet").read_bytes()
    (folder / "items.parquet").unlink()
    (tmp_path / "outside").write_bytes(data)
    (folder / "items.parquet").symlink_to(tmp_path / "outside")
    refused(store, made, "is a link")
    with pytest.raises(ValueError, match="is a link"):
        verify(folder)
    return "refused"


PUBLISH = """
import sys
from pathlib import Path
from releases.object_store import DirectoryStore
from tests.releases.conftest import publish_small, write_files
root = Path(sys.argv[1])
publish_small(DirectoryStore(root / "store"), write_files(root / "2", 2), day="2022-05-02")
"""


@fault(area="releases", injection="no file may grow beyond 20 kB (a full disk)", expected="nothing visible; then whole")
def disk_full_while_publishing(tmp_path: Path) -> str:
    files = write_files(tmp_path / "2", 2)
    code = PUBLISH.replace('write_files(root / "2", 2)', f"{{k: root / '2' / k for k in {sorted(files)}}}")
    limit = 20_000

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command, env = [sys.executable, "-c", code, str(tmp_path)], os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, preexec_fn=full, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "File too large" in done.stderr, done.stderr
    store = DirectoryStore(tmp_path / "store")
    assert released(store) == []
    release_id = publish_small(store, files, day="2022-05-02")
    assert released(store) == [release_id] and list((store.root / ".staging").iterdir()) == []
    return "an error, nothing visible, no leftovers after the next publish"


test_release_fault = cases(__name__)
