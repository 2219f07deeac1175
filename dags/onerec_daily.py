"""
### OneRec: one day, from logs to a served release

**What it does** Four KFP pipelines, each from what the one before it left: *features* (ingest, validate, pathways,
materialize), *tokenizer*, *training* (pretrain, reward, align, evaluate, publish), *release* (serve, promote, report).

**When it fails** the channel `production` keeps its release: recommendations go stale, nothing breaks. The last
`failed` event in `<root>/runs/<day>/progress.jsonl` names the step and its error; its trace is in `logs/<step>.log`.

| symptom | do |
|---|---|
| *validate* failed | the logs are bad: read `<root>/runs/<day>/quality`, have them mended, run the day again |
| "starts from the release of ..." | days are missing: `onerec backfill --from DAY --to DAY` |
| green, but production did not move | a gate failed: `onerec release show RELEASE`; promote it by hand or leave it |
| bad recommendations in production | `onerec release rollback` (moves a pointer, under a second, retrains nothing) |

**Running it again** (`rerun/interval`) is safe: clear the failed task or trigger the day again. Finished steps are
reused while their inputs, settings and code are unchanged; the same day gives the same release. A day needs the release
of the day before, unless the workspace has none at all: then it bootstraps. A backfill never moves a channel back.

The day is the logical date, 00:00 UTC; the schedule starts it when it is over.
"""

from __future__ import annotations

import datetime as dt

from airflow.sdk import CronDataIntervalTimetable, dag
from operators.pipeline import RunPipelineOperator
from params import day_params
from tags import Tag

PIPELINES = ("features", "tokenizer", "training", "release")


@dag(
    dag_id="onerec_daily",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),
    start_date=dt.datetime(2022, 1, 1, tzinfo=dt.UTC),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=dt.timedelta(hours=12),
    # Local pipelines: a step that failed once fails again, and a second try would hide it for hours.
    default_args={"owner": "recommender", "retries": 0},
    tags=[Tag.TIER_1, Tag.RERUN_INTERVAL],
    params=day_params(),
)
def onerec_daily() -> None:
    previous = None
    for pipeline in PIPELINES:
        task = RunPipelineOperator(
            task_id=pipeline,
            pipeline=pipeline,
            day="{{ ds }}",
            root="{{ params.root }}",
            source="{{ params.source }}",
            data="{{ params.data }}",
            seed="{{ params.seed }}",
            fresh_from="{{ params.fresh_from }}",
        )
        if previous is not None:
            previous >> task
        previous = task


onerec_daily()
