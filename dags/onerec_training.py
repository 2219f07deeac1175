"""
### OneRec: the daily retraining

**What it does** Waits for the tokenizer of the day and for the release of the day before (days train in order); then
the KFP pipeline *training*: pre-train on the day from yesterday's weights, update the P-Score model, align (RSFT and
ECPO), evaluate against production, publish one immutable release.

**Inputs** the outcomes of `onerec_features` and `onerec_tokenizer`, the release of the day before. **Outputs** the
outcomes `pretrain`, `reward`, `align`, `evaluate`, `publish`, a release in the store that no channel names yet; the
asset `onerec_release`.

**When it fails** no release of that day exists, its successors wait, production keeps its release and goes stale. The
last `failed` event in `<root>/runs/<day>/progress.jsonl` names the step and its error; its trace is in
`logs/<step>.log`.

| symptom | do |
|---|---|
| waiting for hours | the tokenizer of the day or yesterday's training is late or failed: mend that; this goes on |
| "loss is nan", "more than 3 times the median" | look at the batch in the folder that the line names; mend the logs |
| "out of memory" | runbook gpu_out_of_memory; then clear the task: it goes on from the last checkpoint |
| "starts from the release of ..." | days are missing: `onerec backfill --from DAY --to DAY` |
| bad recommendations | `onerec release rollback` (moves a pointer, under a second, retrains nothing) |

**Running it again** (`rerun/interval`) is safe: clear the failed task. Finished steps are reused; a run on the
cluster is found again by its name, and a day and code version has one. Clearing a running task cancels its run on the
cluster.

The day is the logical date, 00:00 UTC; the schedule starts it when it is over.
"""

from __future__ import annotations

from airflow.sdk import dag
from assets import RELEASE
from house import LIGHT_POOL, POOL, daily, hours, house
from operators.pipeline import RunPipelineOperator
from operators.wait import WaitForStep
from params import day_fields, day_params, wait_fields
from tags import Tag


@dag(
    dag_id="onerec_training",
    doc_md=__doc__,
    schedule=daily(),
    params=day_params(),
    **house(Tag.TIER_1, Tag.RERUN_INTERVAL, deadline=hours(24 + 16), timeout=hours(30)),
)
def onerec_training() -> None:
    ready = WaitForStep(
        task_id="wait_for_tokenizer", step="tokenize", yesterday="publish", pool=LIGHT_POOL, **wait_fields()
    )
    ready >> RunPipelineOperator(task_id="training", pipeline="training", pool=POOL, outlets=[RELEASE], **day_fields())


onerec_training()
