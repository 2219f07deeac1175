"""`onerec recommend`: the next items of a user, over gRPC from Triton.

onerec recommend 42            onerec recommend 42 --url 127.0.0.1:8001
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from cli.options import add_workspace, command, workspace
from cli.summary import title
from releases.channels import CHANNELS, channel_in_use
from releases.manifest import load_release
from releases.stores import open_store


def add(commands) -> None:
    parser = command(commands, "recommend", "the next items of a user", "onerec recommend 42 --k 5")
    parser.add_argument("user", type=int, help="user id")
    parser.add_argument("--k", type=int, default=10, help="number of items (default: 10)")
    parser.add_argument("--exclude", type=int, nargs="*", default=[], help="item ids not to return")
    parser.add_argument("--exclude-authors", type=int, nargs="*", default=[], help="authors not to return")
    parser.add_argument("--max-age-days", type=float, help="only items uploaded within so many days")
    parser.add_argument("--beam", type=int, help="width of the search (default: the server chooses)")
    parser.add_argument("--rerank", action="store_true", help="order by the release's reward model")
    parser.add_argument("--tls-root", type=Path, help="PEM file of the authority behind the server's certificate")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds to wait (default: 30)")
    parser.add_argument("--url", default="", help="gRPC address of a running server (default: start one for this)")
    parser.add_argument("--channel", default="production", choices=CHANNELS, help="release to serve without --url")
    add_workspace(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    from serving.client import RecommendClient

    w = workspace(args)
    store = open_store(w.store, source=w.source)
    with contextlib.ExitStack() as stack:
        url = args.url
        if not url:
            from serving.triton_server import TritonServer

            channel = channel_in_use(store, args.channel)
            folder, _ = load_release(store, channel.release_id)
            print(f"starting Triton on {channel.release_id} (use --url to ask a running server)")
            server = TritonServer(
                release=folder,
                features=w.features,
                feature_store=w.feature_store,
                log=Path(args.root).resolve() / "runs" / "recommend-triton.log",
            )
            url = stack.enter_context(server).grpc_url
        client = stack.enter_context(RecommendClient(url, tls_root=args.tls_root))
        answer = client.recommend(
            args.user,
            args.k,
            args.deadline,
            exclude=args.exclude,
            exclude_authors=args.exclude_authors,
            max_age_s=None if args.max_age_days is None else int(86400 * args.max_age_days),
            beam=args.beam,
            rerank=args.rerank,
        )
    flags = [name for name in ("cold_start", "degraded", "stale") if getattr(answer, name)]
    print(f"user {args.user}, release {answer.release_id}" + (f" ({', '.join(flags)})" if flags else ""))
    names = item_names(load_release(store, answer.release_id)[0] / "items.parquet", answer.item_ids)
    for place, (item, score) in enumerate(zip(answer.item_ids, answer.scores, strict=True), 1):
        print(f"{place:>3}  {score:8.3f}  {item:>12}  {names.get(item, '')}")


def item_names(items: Path, wanted: list[int]) -> dict[int, str]:
    """Title or tags of items, from the release's own catalogue."""
    import pyarrow.parquet as pq

    table = pq.read_table(items, filters=[("item_id", "in", wanted)])
    columns = [c for c in ("item_id", "caption", "tags") if c in table.column_names]
    rows = table.select(columns).to_pylist()
    return {
        r["item_id"]: title({"item_id": r["item_id"], "title": r.get("caption"), "tags": r.get("tags")}) for r in rows
    }
