"""Every rule of the table in `datasets/ingest.py`: what stops the ingest, what is dropped, quarantined or kept."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_kuairand import DAYS, KuaiRandFiles, time_ms

from datasets.cleaning import KEPT, ORDER, QUARANTINED
from datasets.errors import DataError
from datasets.ingest import ingest
from datasets.lake import QUARANTINE
from datasets.partitions import read_manifest

DAY = DAYS[1]
LOG = "log_standard_4_25_to_4_27_tiny.csv"
ROW = 12  # the first row of DAY in the log
Change = Callable[[KuaiRandFiles], object]


def run(source: Path, lake: Path, day: date = DAY, bootstrap: bool = True) -> dict:
    return ingest(source=source, day=day, lake=lake, bootstrap=bootstrap, progress=lambda text: None)


def edit(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return apply


def no_line_end_after(text: bytes, share: float) -> bytes:
    cut = int(len(text) * share)
    return text[: cut + 1] if text[cut : cut + 1] != b"\n" else text[:cut]


STOPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing log column": (edit(LOG, lambda t: t.replace(b"long_view", b"lv", 1)), r"has no column 'long_view'.*mend"),
    "missing user column": (
        edit("user_features_tiny.csv", lambda t: t.replace(b"onehot_feat3", b"x", 1)),
        r"user_features_tiny.csv has no column 'onehot_feat3'",
    ),
    "missing video column": (
        edit("video_features_basic_tiny.csv", lambda t: t.replace(b"author_id", b"author", 1)),
        r"video_features_basic_tiny.csv has no column 'author_id'",
    ),
    "column twice": (edit(LOG, lambda t: t.replace(b"is_like", b"is_click", 1)), r"more than one column 'is_click'"),
    "cut in a line": (edit(LOG, lambda t: no_line_end_after(t, 0.6)), r"line \d+, the last, has no line end"),
    "cut and closed": (
        edit(LOG, lambda t: no_line_end_after(t, 0.6).rsplit(b",", 5)[0] + b"\n"),
        r"line \d+ has \d+ columns in place of 19: the file was cut",
    ),
    "empty file": (edit(LOG, lambda t: b""), r"is empty: copy it again"),
    "Latin-1": (
        edit("user_features_tiny.csv", lambda t: t.replace(b"full_active", b"tr\xe8s_actif", 1)),
        r"user_features_tiny.csv line 2 is not UTF-8 \(byte 0xe8\).*iconv",
    ),
    "UTF-16": (edit(LOG, lambda t: t.decode().encode("utf-16")), r"looks like UTF-16.*iconv"),
    "word for a number": (
        edit(LOG, lambda t: t.replace(b"\n1,1,", b"\none,1,", 1)),
        r"line 3, column 'user_id' is 'one', not a BIGINT",
    ),
    "no date": (edit(LOG, lambda t: t.replace(b"20220425", b"", 1)), r"line 2, column 'date' is empty"),
    "unknown layout": (lambda folder: (folder / LOG).rename(folder / "events.csv"), r"no known layout.*events\.csv"),
    "history cut": (
        edit("history_4_08_to_4_24_last50.parquet", lambda t: t[: len(t) // 2]),
        r"cannot be read.*history_4_08",
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_stops_with_a_mend_and_writes_nothing(name: str, files: KuaiRandFiles, tmp_path: Path) -> None:
    spoil, message = STOPS[name]
    source = files.write(tmp_path / "source")
    spoil(source)
    with pytest.raises(DataError, match=f"(?s){message}"):
        run(source, tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder"):
        run(tmp_path / "nowhere", tmp_path / "lake")


@pytest.mark.parametrize("day", [date(2022, 4, 24), date(2022, 4, 28)])
def test_day_out_of_range_names_the_days(day: date, files: KuaiRandFiles, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{day} is out of the range .* 2022-04-25 to 2022-04-27"):
        run(files.write(tmp_path / "source"), tmp_path / "lake", day)


def test_day_without_rows_names_the_days(files: KuaiRandFiles, tmp_path: Path) -> None:
    files.log = [row for row in files.log if row["date"] != "20220426"]
    with pytest.raises(DataError, match="no rows for 2022-04-26; it has rows for 2022-04-25, 2022-04-27"):
        run(files.write(tmp_path / "source"), tmp_path / "lake")


def test_day_without_usable_rows_says_why(files: KuaiRandFiles, tmp_path: Path) -> None:
    for row in files.log[ROW : ROW + 12]:
        row["time_ms"] = time_ms(DAY, 500)
    with pytest.raises(DataError, match=r"no usable rows for 2022-04-26 \(12 were read: 12 too_far_ahead\)"):
        run(files.write(tmp_path / "source"), tmp_path / "lake")
    assert not (tmp_path / "lake").exists()


def put(**values: object) -> Change:
    return lambda files: files.log[ROW].update(values)


def copy_of(row: int, **values: object) -> Change:
    return lambda files: files.log.append(files.log[row] | values)


# name: (the fault, the rule that counts it, rows kept of 12, rows quarantined)
COUNTED: dict[str, tuple[Change, str, int, int]] = {
    "exact duplicate": (copy_of(ROW), "duplicates", 12, 0),
    "duplicate but for a column that is not read": (copy_of(ROW, profile_stay_time=5), "duplicates", 12, 0),
    "same event, other values": (copy_of(ROW, play_time_ms=77), "conflicting_duplicate", 12, 1),
    "same event in the day before": (
        lambda files: files.log.append(files.log[ROW - 1] | {"date": "20220426"}),
        "too_late",
        12,
        1,
    ),
    "same event near midnight in the day before": (
        lambda files: files.log.extend(
            files.log[ROW] | {"time_ms": time_ms(DAY, -0.5), "date": day} for day in ("20220425", "20220426")
        ),
        "repeats_day_before",
        12,
        1,
    ),
    "no user": (put(user_id=""), "no_id", 11, 1),
    "no video": (put(video_id=""), "no_id", 11, 1),
    "negative user": (put(user_id=-1), "no_id", 11, 1),
    "no time": (put(time_ms=""), "no_time", 11, 1),
    "time in another year": (put(time_ms=0), "too_late", 11, 1),
    "time 7 hours after the day": (put(time_ms=time_ms(DAY, 31)), "too_far_ahead", 11, 1),
    "time 7 hours before the day": (put(time_ms=time_ms(DAY, -7)), "too_late", 11, 1),
    "time 2 hours before the day": (put(time_ms=time_ms(DAY, -2)), "late", 12, 0),
    "time at the midnight that ends the day": (put(time_ms=time_ms(DAY, 24)), "ahead_of_day", 12, 0),
    "negative play time": (put(play_time_ms=-5), "play_time_negative", 12, 0),
    "play time over 100 durations": (put(play_time_ms=2_000_001), "play_time_too_long", 12, 0),
    "no duration": (put(duration_ms=0), "duration_not_positive", 12, 0),
    "negative duration": (put(duration_ms=-3), "duration_not_positive", 12, 0),
    "label of 7": (put(is_like=7), "label_not_binary", 12, 0),
    "time at the last tolerated moment before the day": (put(time_ms=time_ms(DAY, -6)), "late", 12, 0),
    "time a millisecond before that": (put(time_ms=time_ms(DAY, -6) - 1), "too_late", 11, 1),
    "time at the last tolerated moment after the day": (put(time_ms=time_ms(DAY, 30) - 1), "ahead_of_day", 12, 0),
    "time a millisecond after that": (put(time_ms=time_ms(DAY, 30)), "too_far_ahead", 11, 1),
    "two rows swapped": (
        lambda files: files.log.__setitem__(slice(ROW, ROW + 2), [files.log[ROW + 1], files.log[ROW]]),
        "out_of_order",
        12,
        0,
    ),
    "unknown user": (put(user_id=99), "unknown_user", 12, 0),
    "unknown video": (put(video_id=99), "unknown_item", 12, 0),
}


@pytest.mark.parametrize("name", COUNTED)
def test_counts_what_it_drops_or_keeps(name: str, files: KuaiRandFiles, tmp_path: Path) -> None:
    spoil, rule, kept, quarantined = COUNTED[name]
    spoil(files)
    result = run(files.write(tmp_path / "source"), tmp_path / "lake")
    partition = tmp_path / "lake" / f"impressions/dt={DAY}"
    entry = result["tables"][f"impressions/dt={DAY}"]
    counts = entry["counts"]
    met = {name: count for name, count in counts.items() if count and name != "rows_read"}
    if rule != ORDER:  # a row put at the end of the file is also out of order
        met.pop(ORDER, None)
    assert met == {rule: 1}
    assert entry["rows"] == kept == pq.read_metadata(partition / "part-0.parquet").num_rows
    assert read_manifest(partition)["counts"] == counts
    # Nothing is lost: what is not kept and not a copy lies in the quarantine, with the reason.
    assert counts["rows_read"] == counts["duplicates"] + sum(counts[reason] for reason in QUARANTINED) + kept
    if quarantined:
        assert pq.read_table(partition / QUARANTINE)["reason"].to_pylist() == [rule] * quarantined
    else:
        assert not (partition / QUARANTINE).exists()
    assert result["counts"][rule] >= 1


def test_rules_of_the_docstring_are_all_tried() -> None:
    assert {rule for _, rule, _, _ in COUNTED.values()} >= {*QUARANTINED, *KEPT, ORDER, "duplicates"}


@pytest.mark.parametrize("value", ["-5", "2000001"])
def test_an_incredible_play_time_becomes_null_and_the_labels_stay(
    value: str, files: KuaiRandFiles, tmp_path: Path
) -> None:
    put(play_time_ms=value, is_like=1)(files)
    run(files.write(tmp_path / "source"), tmp_path / "lake")
    row = pq.read_table(tmp_path / "lake" / f"impressions/dt={DAY}/part-0.parquet").to_pylist()[0]
    assert (row["play_time_ms"], row["is_like"], row["duration_ms"]) == (None, 1, 20_000)


def test_quarantined_rows_lie_there_unchanged(files: KuaiRandFiles, tmp_path: Path) -> None:
    put(user_id=-1, play_time_ms=-5)(files)
    run(files.write(tmp_path / "source"), tmp_path / "lake")
    rows = pq.read_table(tmp_path / "lake" / f"impressions/dt={DAY}" / QUARANTINE).to_pylist()
    assert [(r["reason"], r["user_id"], r["play_time_ms"]) for r in rows] == [("no_id", -1, -5)]


def test_of_two_rows_of_an_event_the_longer_credible_play_stays(files: KuaiRandFiles, tmp_path: Path) -> None:
    copy_of(ROW, play_time_ms=77)(files)
    copy_of(ROW, play_time_ms=9_000_000)(files)
    run(files.write(tmp_path / "source"), tmp_path / "lake")
    first = pq.read_table(tmp_path / "lake" / f"impressions/dt={DAY}/part-0.parquet").to_pylist()[0]
    assert first["play_time_ms"] == 77


def test_unknown_users_and_videos_join_the_tables(files: KuaiRandFiles, tmp_path: Path) -> None:
    put(user_id=99, video_id=98)(files)
    files.history.append({"user_id": 97, "pos": 0, "video_id": 96, "long_view": 1, "is_like": 0})
    result = run(files.write(tmp_path / "source"), tmp_path / "lake")
    items = pq.read_table(tmp_path / "lake" / f"items/dt={DAY}/part-0.parquet").to_pylist()
    users = pq.read_table(tmp_path / "lake" / f"users/dt={DAY}/part-0.parquet").to_pylist()
    assert {i["item_id"]: i["author_id"] for i in items if i["item_id"] > 5} == {96: -1, 98: -1}
    assert [u["user_id"] for u in users] == [0, 1, 2, 3, 97, 99]
    assert users[-1]["user_active_degree"] is None
    assert (result["counts"]["items.unknown_item"], result["counts"]["users.unknown_user"]) == (2, 2)


def test_a_later_day_still_knows_them(files: KuaiRandFiles, tmp_path: Path) -> None:
    put(user_id=99, video_id=98)(files)
    source = files.write(tmp_path / "source")
    run(source, tmp_path / "lake")
    run(source, tmp_path / "lake", DAY + timedelta(days=1), bootstrap=False)
    items = pq.read_table(tmp_path / "lake" / f"items/dt={DAYS[2]}/part-0.parquet")
    assert 98 in items["item_id"].to_pylist()


def test_the_feature_files_are_judged_too(files: KuaiRandFiles, tmp_path: Path) -> None:
    files.videos += [files.videos[0], files.videos[1] | {"tag": "9"}]
    files.users.append({"user_id": -4})
    counts = run(files.write(tmp_path / "source"), tmp_path / "lake")["counts"]
    assert (counts["items.duplicates"], counts["items.conflicting_duplicate"], counts["users.no_id"]) == (1, 1, 1)
    assert pq.read_metadata(tmp_path / "lake" / f"items/dt={DAY}" / QUARANTINE).num_rows == 1
