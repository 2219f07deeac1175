"""The page of the faults can be read back, so that a part of them can be run anew."""

from __future__ import annotations

from fault import Fault, read_table, table


def test_the_page_reads_back_and_keeps_faults_of_one_name_in_two_areas() -> None:
    made = [
        Fault(name="lock holder dies", area=area, injection="a | b", expected="c", run=lambda _: "d", needs=lambda: "")
        for area in ("data", "releases")
    ]
    rows = read_table(table([f.row("as expected", f"seen\nin {f.area}") for f in made]))
    assert [(r["area"], r["injection"], r["seen"]) for r in rows] == [
        ("data", "a / b", "seen in data"),
        ("releases", "a / b", "seen in releases"),
    ]
    assert read_table(table(rows)) == rows and "2 of 2 faults" in table(rows)
