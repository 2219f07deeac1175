"""
### OneRec: judge the release of a day and bring it into production

**What it does** Waits for the published release of the day; then, each a task and a KFP pipeline: *gate* (a real
server answers ten users, the gates judge it against production, it becomes `candidate`), *shadow* (it answers beside
production, unseen), *canary* (it answers a growing share of the users), *promote* (`production` moves, the day is
reported). Servers take a bad candidate out by themselves, within seconds.

**Inputs** the outcomes of the day and the release; `servers`, whose metrics are watched: without them nobody serves
yet, and *shadow* and *canary* are skipped. **Outputs** the recorded decision and rollout with their numbers, the
channels, `<root>/runs/<day>/report.html`; the asset `onerec_production`.

**When it fails** production keeps its release. The last `failed` event in `<root>/runs/<day>/progress.jsonl` names
the step and its error; its trace is in `logs/<step>.log`, Triton's own in `logs/triton.log`.

| symptom | do |
|---|---|
| waiting for hours | `onerec_training` of the day is late or failed: mend that; this goes on by itself |
| green, but production did not move | a gate failed: `onerec release show RELEASE`; promote it by hand or leave it |
| *serve* failed | the release does not load or answers illegal items: never promote it by hand; runbook bad_release |
| *shadow* or *canary*: "was taken out" | it was worse on real traffic, nobody saw more; runbook bad_release |
| *shadow* or *canary*: "is there traffic?" | nobody asks the servers, or they refuse the release; then clear the task |
| a canary must end now | `onerec release rollout --stop REASON`: the servers drop it within a second |
| bad recommendations in production | trigger `onerec_rollback`, or `onerec release rollback` (a pointer, at once) |
| days are missing | `onerec backfill --from DAY --to DAY`; a channel never moves back to an earlier day |

**Running it again** (`rerun/interval`) is safe: the same release is judged by the same numbers, a channel that names
it already stays as it is, and a release that was taken out is not tried again.

The day is the logical date, 00:00 UTC; the schedule starts it when it is over.
"""

from __future__ import annotations

from airflow.sdk import dag
from assets import PRODUCTION
from house import LIGHT_POOL, POOL, daily, hours, house
from operators.pipeline import RunPipelineOperator
from operators.wait import WaitForStep
from params import day_fields, day_params, traffic_fields, traffic_params, wait_fields
from tags import Tag


@dag(
    dag_id="onerec_release",
    doc_md=__doc__,
    schedule=daily(),
    params={**day_params(), **traffic_params()},
    **house(Tag.TIER_1, Tag.RERUN_INTERVAL, deadline=hours(24 + 18), timeout=hours(30)),
)
def onerec_release() -> None:
    ready = WaitForStep(task_id="wait_for_release", step="publish", pool=LIGHT_POOL, **wait_fields())
    gate = RunPipelineOperator(task_id="gate", pipeline="gate", pool=POOL, **day_fields())
    shadow, canary = (
        RunPipelineOperator(
            task_id=stage,
            pipeline=stage,
            pool=LIGHT_POOL,  # they wait for traffic: no slot of those that work
            skip_without_servers=True,
            trigger_rule="none_failed",
            **traffic_fields(stage),
            **day_fields(),
        )
        for stage in ("shadow", "canary")
    )
    promote = RunPipelineOperator(
        task_id="promote",
        pipeline="promote",
        pool=POOL,
        trigger_rule="none_failed",
        outlets=[PRODUCTION],
        servers="{{ params.servers }}",
        **day_fields(),
    )
    ready >> gate >> shadow >> canary >> promote


onerec_release()
