"""A log larger than the memory it may use comes in whole: DuckDB's limit holds, and the process keeps to it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from tiny_kuairand import LOG_COLUMNS, tiny_files

DAYS, ROWS_A_DAY = 6, 290_000
LIMIT_MIB, REST_MIB = 64, 48  # of DuckDB; of Arrow's buffers, which do not grow with the log
CHILD = """
import json, resource, sys
from datetime import date
from pathlib import Path
from datasets.ingest import ingest
import pyarrow.parquet, duckdb
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
result = ingest(source=Path(sys.argv[1]), day=date(2022, 4, 30), lake=Path(sys.argv[2]), bootstrap=True,
                progress=lambda text: None, memory_mib=int(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"before": before, "peak": peak, "counts": result["counts"], "days": result["days"]}))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A KuaiRand folder of 1.7 million impressions, every tenth twice: about 125 MB of CSV."""
    folder = tiny_files().write(tmp_path_factory.mktemp("large") / "source")
    for file in folder.glob("log_standard_*"):
        file.unlink()
    values = dict.fromkeys(LOG_COLUMNS, "0") | {
        "user_id": "n % 4",
        "video_id": "n % 6",
        "date": "20220425 + d",
        "time_ms": "epoch_ms(TIMESTAMP '2022-04-24 16:00:00') + d * 86400000 + (n * 7919) % 86400000",
        "is_click": "n % 2",
        "play_time_ms": "n % 60000",
        "duration_ms": "20000 + n",
        "tab": "1",
    }
    columns = ", ".join(f"{value} AS {name}" for name, value in values.items())
    rows = f"SELECT {columns} FROM (SELECT i % {DAYS} AS d, i // {DAYS} AS n FROM range({DAYS * ROWS_A_DAY}) t(i))"
    with duckdb.connect() as con:
        con.execute(
            f"COPY (SELECT * FROM ({rows}) UNION ALL SELECT * FROM ({rows}) WHERE duration_ms % 10 = 0)"
            f" TO '{folder}/log_standard_4_25_to_4_30_27k_part1.csv' (HEADER)"
        )
    return folder


def test_a_log_larger_than_the_memory_limit_is_ingested_whole(large: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(large), str(tmp_path / "lake"), str(LIMIT_MIB)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["days"]) == DAYS
    assert found["counts"]["rows_read"] == DAYS * ROWS_A_DAY * 11 // 10
    assert found["counts"]["duplicates"] == DAYS * ROWS_A_DAY // 10

    grown = found["peak"] - found["before"]
    assert grown < LIMIT_MIB + REST_MIB < sum(f.stat().st_size for f in large.glob("log_*")) / 2**20
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ["lake"], "the temporary folder is gone"
