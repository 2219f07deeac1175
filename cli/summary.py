"""What `onerec daily` and `onerec report` print about a day: recommendations, numbers beside the floors, the gates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from kfp_components.step import Outcome
from kfp_components.workspace import Workspace

SHOWN_ITEMS, WIDTH = 3, 100
METRICS = ("recall@10", "recall@50", "ndcg@50")


def print_summary(workspace: Workspace, day: str) -> None:
    """Of a finished day. ValueError names a step that has not run."""
    run_dir = workspace.run_dir(day)
    recommendations = json.loads((run_dir / "recommendations.json").read_text())
    print(f"\nrecommendations over gRPC from release {recommendations['release_id']}")
    for user in recommendations["users"]:
        print(f"  {user_line(user)}")
    print(f"  legal items {recommendations['legal']:.1%}, unseen items {recommendations['unseen']:.1%}")
    print("\n".join(metric_table(Outcome.read(workspace.step_dir(day, "evaluate")).metrics)))
    decision = Outcome.read(workspace.step_dir(day, "promote")).metrics
    print("\n".join(gate_lines(decision)))
    for name in ("report.html", "report.json"):
        print(f"{name:<12}  {shown(run_dir / name)}")


def user_line(user: dict[str, Any]) -> str:
    """A user's first items by title, else by tags, else by id."""
    items = [title(item) for item in user["items"][:SHOWN_ITEMS]]
    more = len(user["items"]) - len(items)
    line = f"user {user['user_id']}: " + "; ".join(items) + (f" and {more} more" if more > 0 else "")
    return line + ("  (cold start)" if user.get("cold_start") else "")


def title(item: dict[str, Any]) -> str:
    text = item.get("title") or ""
    tags = ",".join(map(str, item.get("tags") or []))
    name = text if len(text) <= 32 else f"{text[:31]}…"
    return name or f"item {item['item_id']}" + (f" [{tags}]" if tags else "")


def metric_table(evaluation: dict[str, Any]) -> list[str]:
    """The model, the floors and production on the same users."""
    known = [m for m in METRICS if m in evaluation["rows"][0]]
    lines = [f"\n{evaluation['users']:,} users with unseen positives   " + "  ".join(f"{m:>9}" for m in known)]
    for row in evaluation["rows"]:
        lines.append(f"  {row['name']:<31}" + "  ".join(f"{row[m]:9.4f}" for m in known))
    return lines


def gate_lines(decision: dict[str, Any]) -> list[str]:
    """The release and the gates' word on it, loud when a gate failed."""
    where = ", ".join(f"{channel} -> {release}" for channel, release in decision["channels"].items())
    lines = [f"\nrelease       {decision['release_id']}", f"channels      {where}"]
    failed = [c for c in decision["checks"] if not c["passed"]]
    if not failed:
        return [*lines, f"gates         all {len(decision['checks'])} passed"]
    lines.append("gates         FAILED: this release did not go to production")
    lines += [f"              {c['name']}: {c['value']} (limit {c['limit']})" for c in failed]
    return [*lines, f"              promote it all the same: onerec release promote {decision['release_id']}"]


def shown(path: Path) -> str:
    """Relative to where the reader stands, when it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
