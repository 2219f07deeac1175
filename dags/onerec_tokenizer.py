"""
### OneRec: the daily tokenizer refresh, and the refit

**What it does** Waits for the features of the day and for the release of the day before; then the KFP pipeline
*tokenizer*: new and changed items get semantic IDs from the frozen codebooks, all others keep theirs.

**Inputs** the outcomes `ingest` and `pathways` of the day, the tokenizer of the day before. **Outputs** the outcome
`tokenize` (codebooks, SID table, trie); the asset `onerec_tokenizer`.

To **refit** the codebooks trigger it for a day with `{"refit": true}` before `onerec_training` runs that day, or
clear that day there afterwards. Labels keep their meaning and the model goes on from its code embeddings. The request
stays with the day (`<root>/<source>/refits/<day>`; remove the file to take it back). Drift asks for a refit by
itself.

**When it fails** the release in production keeps its tokenizer; new items wait for their ID. The last `failed` event
in `<root>/runs/<day>/progress.jsonl` names the step and its error; its trace is in `logs/<step>.log`.

| symptom | do |
|---|---|
| waiting for hours | `onerec_features` of the day is late or failed: mend that; this task goes on by itself |
| "tokenizer refused: GATE is ..." | that gate failed (`models/tokenizer/gates.py`): look at the items, or refit |
| "starts from the release of ..." | days are missing: `onerec backfill --from DAY --to DAY` |
| bad recommendations after a refit | `onerec release rollback` (moves a pointer, under a second, retrains nothing) |

**Running it again** (`rerun/interval`) is safe: finished steps are reused while inputs, settings and code stay.

The day is the logical date, 00:00 UTC; the schedule starts it when it is over.
"""

from __future__ import annotations

from airflow.sdk import Param, dag
from assets import TOKENIZER
from house import LIGHT_POOL, POOL, daily, hours, house
from operators.pipeline import RunPipelineOperator
from operators.wait import WaitForStep
from params import day_fields, day_params, wait_fields
from tags import Tag


@dag(
    dag_id="onerec_tokenizer",
    doc_md=__doc__,
    schedule=daily(),
    params={
        **day_params(),
        "refit": Param(False, type="boolean", description="fit the codebooks anew on this day"),
    },
    **house(Tag.TIER_2, Tag.RERUN_INTERVAL, deadline=hours(24 + 9), timeout=hours(24)),
)
def onerec_tokenizer() -> None:
    ready = WaitForStep(
        task_id="wait_for_features", step="materialize", yesterday="publish", pool=LIGHT_POOL, **wait_fields()
    )
    ready >> RunPipelineOperator(
        task_id="tokenizer",
        pipeline="tokenizer",
        refit="{{ params.refit }}",
        pool=POOL,
        outlets=[TOKENIZER],
        **day_fields(),
    )


onerec_tokenizer()
