"""
### OneRec: housekeeping

**What it does** `onerec housekeeping`: removes partitions that a backfill replaced more than 30 days ago, what killed
writes left behind for more than a day, and backfill stagings nobody resumed for 30 days. What it removes it names.

**Inputs** the workspace. **Outputs** free disk space. Releases are the business of `onerec release gc`, never of
this.

**When it fails** nothing breaks today; the disk fills up. The task's log names the file that could not be removed;
`onerec housekeeping --dry-run` shows what it would do. Never help with `rm`: see the runbook disk_full.

**Running it again** (`rerun/now`) is safe at any time; it works on what is there now and never touches what a run
holds.

Scheduled at 03:00 UTC. It knows nothing of days: a day that failed is mended with `onerec backfill --from DAY --to
DAY`, `<root>/runs/<day>/progress.jsonl` says why, and bad recommendations are undone by `onerec release rollback`.
"""

from __future__ import annotations

from airflow.sdk import dag
from house import LIGHT_POOL, daily, hours, house
from operators.command import OnerecCommand
from params import place_params
from tags import Tag


@dag(
    dag_id="onerec_housekeeping",
    doc_md=__doc__,
    schedule=daily("0 3 * * *"),
    params=place_params(),
    **house(Tag.TIER_3, Tag.RERUN_NOW, deadline=hours(24 + 2), timeout=hours(4)),
)
def onerec_housekeeping() -> None:
    place = ["--root", "{{ params.root }}", "--source", "{{ params.source }}"]
    OnerecCommand(task_id="housekeeping", arguments=["housekeeping", *place], pool=LIGHT_POOL)


onerec_housekeeping()
