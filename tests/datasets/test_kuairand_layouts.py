"""KuaiRand's official layouts: Pure, 1K and 27K (the log in parts), in the folder or its data/, plain or gzip."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from tiny_kuairand import DAYS, KuaiRandFiles

from datasets.errors import DataError
from datasets.ingest import ingest

LOG = "log_standard_4_25_to_4_27_tiny.csv"


def run(source: Path, lake: Path) -> dict:
    return ingest(source=source, day=DAYS[1], lake=lake, bootstrap=True, progress=lambda text: None)


def digests(result: dict) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in result["tables"].items()}


@pytest.fixture
def source(files: KuaiRandFiles, tmp_path: Path) -> Path:
    return files.write(tmp_path / "source")


def split_log(source: Path, names: list[str]) -> None:
    """Deal the log's rows out to files of these names, each with the header."""
    header, *lines = (source / LOG).read_text().splitlines(keepends=True)
    (source / LOG).unlink()
    for number, name in enumerate(names):
        size = -(-len(lines) // len(names))
        (source / name).write_text(header + "".join(lines[number * size : (number + 1) * size]))


def compress(source: Path) -> None:
    for file in list(source.rglob("*.csv")):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def as_1k(source: Path) -> None:
    split_log(source, ["log_standard_4_08_to_4_21_1k.csv", "log_standard_4_22_to_5_08_1k.csv"])
    (source / "user_features_tiny.csv").rename(source / "user_features_1k.csv")
    (source / "video_features_basic_tiny.csv").rename(source / "video_features_basic_1k.csv")
    (source / "log_random_4_22_to_5_08_1k.csv").write_text("not,read\n")


def as_27k(source: Path) -> None:
    ends = ("4_08_to_4_21_27k_part1", "4_08_to_4_21_27k_part2", "4_22_to_5_08_27k_part1", "4_22_to_5_08_27k_part2")
    split_log(source, [f"log_standard_{end}.csv" for end in ends])
    (source / "user_features_tiny.csv").rename(source / "user_features_27k.csv")
    (source / "video_features_basic_tiny.csv").rename(source / "video_features_basic_27k.csv")
    for part in (1, 2, 3):
        (source / f"video_features_statistic_27k_part{part}.csv").write_text("not,read\n")


def into_data(source: Path) -> None:
    shutil.move(source, source.with_name("whole"))
    shutil.move(source.with_name("whole"), source / "data")


LAYOUTS = {
    "1K": [as_1k],
    "27K in parts": [as_27k],
    "27K in parts, gzip": [as_27k, compress],
    "Pure, gzip": [compress],
    "as the archive unpacks": [as_27k, into_data],
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_tables(name: str, source: Path, tmp_path: Path) -> None:
    plain = run(source, tmp_path / "plain")
    for change in LAYOUTS[name]:
        change(source)
    found = run(source, tmp_path / "lake")
    assert found["adapter"] == "kuairand"
    assert digests(found) == digests(plain)


def test_a_file_plain_and_gzip_is_refused(source: Path, tmp_path: Path) -> None:
    (source / f"{LOG}.gz").write_bytes(gzip.compress((source / LOG).read_bytes()))
    with pytest.raises(DataError, match=f"has {LOG} plain and as .gz: remove one of the two"):
        run(source, tmp_path / "lake")


def test_a_cut_gzip_file_is_named(source: Path, tmp_path: Path) -> None:
    compress(source)
    file = source / f"{LOG}.gz"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{LOG}\.gz is no whole gzip file .*copy it again"):
        run(source, tmp_path / "lake")


def test_a_bad_value_in_gzip_is_named_with_its_line(source: Path, tmp_path: Path) -> None:
    text = (source / LOG).read_text().splitlines(keepends=True)
    (source / LOG).write_text("".join([*text[:5], text[5].replace("20220425", "yesterday"), *text[6:]]))
    compress(source)
    with pytest.raises(DataError, match=rf"{LOG}\.gz line 6, column 'date' is 'yesterday', not a INTEGER"):
        run(source, tmp_path / "lake")


def test_days_in_another_spelling_are_refused(source: Path, tmp_path: Path) -> None:
    (source / LOG).write_text((source / LOG).read_text().replace("20220425", "42522"))
    with pytest.raises(DataError, match="write days as 20220425"):
        run(source, tmp_path / "lake")
