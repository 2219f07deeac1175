"""
### OneRec: the daily tokenizer refresh, and the refit

**What it does** Two KFP pipelines of a day, *features* (ingest, validate, pathways, materialize) and *tokenizer*: new
and changed items get semantic IDs from the frozen codebooks, all others keep theirs. `onerec_daily` runs the same two
first; their steps are shared, so whichever DAG comes second reuses what the first one left. Use this one

- to **refit** the codebooks: trigger it for a day with `{"refit": true}`, before `onerec_daily` runs that day, or clear
  that day in `onerec_daily` afterwards, which trains on the new IDs. Labels keep their meaning and the model goes on
  from its code embeddings. The request stays with the day (`<root>/<source>/refits/<day>`; remove the file to take it
  back). Drift beyond its limit asks for a refit by itself.
- to have the IDs of a day at noon where training runs late or is stopped. It is paused until somebody wants that.

**When it fails** the release in production keeps its tokenizer; new items wait for their ID. The last `failed` event in
`<root>/runs/<day>/progress.jsonl` names the step and its error; its trace is in `logs/<step>.log`.

| symptom | do |
|---|---|
| "tokenizer refused: GATE is ..." | that gate failed (`models/tokenizer/gates.py`): look at the items, or refit |
| *validate* failed | the logs are bad: have them mended, run the day again |
| "... is at work here" | `onerec_daily` runs this workspace: wait, then clear the task |
| "starts from the release of ..." | days are missing: `onerec backfill --from DAY --to DAY` |
| bad recommendations after a refit | `onerec release rollback` (moves a pointer, under a second, retrains nothing) |

**Running it again** (`rerun/interval`) is safe: finished steps are reused while inputs, settings and code stay.

The day is the logical date, UTC; the schedule starts it at noon of the next day.
"""

from __future__ import annotations

import datetime as dt

from airflow.sdk import CronDataIntervalTimetable, Param, dag
from operators.pipeline import RunPipelineOperator
from params import day_params
from tags import Tag


@dag(
    dag_id="onerec_tokenizer",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("0 12 * * *", timezone="UTC"),
    start_date=dt.datetime(2022, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    is_paused_upon_creation=True,
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=6),
    # Local pipelines: a step that failed once fails again, and a second try would hide it for hours.
    default_args={"owner": "recommender", "retries": 0},
    tags=[Tag.TIER_2, Tag.RERUN_INTERVAL],
    params={
        **day_params(),
        "refit": Param(False, type="boolean", description="fit the codebooks anew on this day"),
    },
)
def onerec_tokenizer() -> None:
    common = {"day": "{{ ds }}", "root": "{{ params.root }}", "source": "{{ params.source }}"}
    common |= {"data": "{{ params.data }}", "seed": "{{ params.seed }}", "fresh_from": "{{ params.fresh_from }}"}
    features = RunPipelineOperator(task_id="features", pipeline="features", **common)
    features >> RunPipelineOperator(
        task_id="tokenizer", pipeline="tokenizer", refit="{{ params.refit }}", **common
    )  # fmt: skip


onerec_tokenizer()
