"""`onerec release`: look at releases and move the channels.

onerec release list            onerec release rollback
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from cli.options import add_workspace, command, store
from releases import channels, describe, gates, rollout, signing
from releases.collect import Keep, collect, plan
from releases.publish import sign_release

WAIT_S = 60.0


def add(commands) -> None:
    group = command(commands, "release", "list, show, compare, promote and roll back releases", "onerec release list")
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    listed = command(actions, "list", "all releases, oldest first", "onerec release list")
    listed.set_defaults(run=run_list)

    shown = command(actions, "show", "one release", "onerec release show 2022-05-05-0123456789ab")
    shown.add_argument("release")
    shown.set_defaults(run=run_show)

    example = "onerec release diff 2022-05-05-0123456789ab 2022-05-06-ba9876543210"
    compared = command(actions, "diff", "what changed between two releases", example)
    compared.add_argument("old")
    compared.add_argument("new")
    compared.set_defaults(run=run_diff)

    example = "onerec release promote 2022-05-05-0123456789ab --reason 'checked by hand'"
    promoted = command(actions, "promote", "point a channel at a release", example)
    promoted.add_argument("release")
    promoted.add_argument("--reason", default="promoted by hand", help="kept in the channel's history")
    promoted.set_defaults(run=run_promote)

    example = "onerec release rollback --reason 'odd items for new users'"
    rolled = command(actions, "rollback", "point a channel at the release before the present one", example)
    rolled.add_argument("--reason", default="rolled back by hand", help="kept in the channel's history")
    rolled.set_defaults(run=run_rollback)

    example = "onerec release rollout --stop 'odd items for new users'"
    rolling = command(actions, "rollout", "what the candidate meets of the traffic; take it out at once", example)
    rolling.add_argument("--stop", default="", metavar="REASON", help="servers drop the candidate; kept in the history")
    rolling.set_defaults(run=run_rollout)

    example = "onerec release refresh-items --items items.parquet --promote"
    fresh = command(actions, "refresh-items", "publish new and withdrawn items with the same model", example)
    fresh.add_argument("--items", type=Path, required=True, help="items table (Parquet) of all that may be served")
    fresh.add_argument("--base", default="", help="release to start from (default: the one in production)")
    fresh.add_argument("--promote", action="store_true", help="point production at the new release")
    fresh.set_defaults(run=run_refresh_items)

    example = "onerec release block 42 77 --reason 'taken down'"
    blocked = command(actions, "block", "keep items out of every answer, at once", example)
    freed = command(actions, "unblock", "take items off the block list", "onerec release unblock 42 --reason restored")
    for action, what in ((blocked, "block"), (freed, "unblock")):
        action.add_argument("items", type=int, nargs="+", help="item ids")
        action.add_argument("--reason", required=True, help="kept in the list's history")
        action.set_defaults(run=run_block, what=what)
    signed = command(actions, "sign", "sign a release that is there", "onerec release sign 2022-05-05-0123456789ab")
    signed.add_argument("release")
    signed.set_defaults(run=run_sign)

    keys = command(actions, "keygen", "make a pair of signing keys", "onerec release keygen keys --name ci-2026")
    keys.add_argument("folder", type=Path)
    keys.add_argument("--name", default="signer", help="name of the pair (default: signer)")
    keys.set_defaults(run=run_keygen)

    example = "onerec release gc --apply 0123456789ab"
    swept = command(actions, "gc", "releases nobody needs: show them and a token, then remove them with it", example)
    swept.add_argument("--apply", default="", metavar="PLAN", help="remove what the plan of this name says")
    swept.add_argument("--days", type=int, default=Keep.days, help="newest days to keep (default: %(default)s)")
    swept.add_argument(
        "--rollbacks", type=int, default=Keep.rollbacks, help="steps back in a channel to keep (default: %(default)s)"
    )
    swept.set_defaults(run=run_gc)

    for action in (listed, shown, compared):
        action.add_argument("--json", action="store_true", help="JSON instead of text")
    for action in (promoted, rolled):
        action.add_argument("--channel", default="production", choices=channels.CHANNELS)
    for action in (promoted, rolled):
        action.add_argument("--url", default="", help="wait until the server at this gRPC address serves it")
    for action in (listed, shown, compared, promoted, rolled, rolling, fresh, blocked, freed, signed, swept):
        add_workspace(action)


def run_list(args: argparse.Namespace) -> None:
    rows = describe.list_releases(store(args))
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'release':<24}  {describe.METRIC:>9}  {'gates':<6}  {'created':<25}  channels")
    for row in rows:
        recall = "-" if row[describe.METRIC] is None else f"{row[describe.METRIC]:.4f}"
        where = ", ".join(row["channels"])
        print(f"{row['release_id']:<24}  {recall:>9}  {row['gate']:<6}  {row['created_at']:<25}  {where}".rstrip())


def run_show(args: argparse.Namespace) -> None:
    found = describe.show(store(args), args.release)
    print(json.dumps(found, indent=1) if args.json else describe.show_text(found))


def run_diff(args: argparse.Namespace) -> None:
    found = describe.diff(store(args), args.old, args.new)
    print(json.dumps(found, indent=1) if args.json else describe.diff_text(found))


def run_promote(args: argparse.Namespace) -> None:
    where, decision = store(args), gates.read_decision(store(args), args.release)
    moved = channels.promote(where, args.release, channel=args.channel, reason=args.reason)
    if args.channel == "production" and not (decision and decision["passed"]):
        why = "no gate has judged it" if decision is None else "a gate failed"
        print(f"warning: {args.release} went to production although {why}", file=sys.stderr)
    print(f"{args.channel} -> {moved.release_id}")
    wait_served(args, moved.release_id)


def run_rollback(args: argparse.Namespace) -> None:
    moved = channels.rollback(store(args), args.channel, reason=args.reason)
    print(f"{args.channel} -> {moved.release_id}")
    wait_served(args, moved.release_id)


def run_rollout(args: argparse.Namespace) -> None:
    where = store(args)
    now = rollout.read(where)
    if args.stop:
        if now is None or now.stage not in ("shadow", "canary"):
            raise ValueError("no candidate meets traffic now; production goes back with: onerec release rollback")
        now = rollout.move(where, now.release_id, "stopped", reason=args.stop)
    if now is None:
        print("no candidate has met traffic yet")
        return
    for move in now.history[-10:]:
        share = f" {move['percent']:g} %" if move["percent"] else ""
        print(f"{move['at']}  {move['release_id']}  {move['stage']}{share}: {move['reason']}")


def run_refresh_items(args: argparse.Namespace) -> None:
    from serving.refresh_items import refresh_items

    where = store(args)
    if not (base := args.base):
        if (now := channels.read_channel(where, "production")) is None:
            raise ValueError("channel production names no release; say which to start from: --base RELEASE")
        base = now.release_id
    release_id, _ = refresh_items(store=where, base=base, items=args.items)
    if args.promote:
        channels.promote(where, release_id, reason=f"items refreshed on {base}")
        print(f"production -> {release_id}")


def run_block(args: argparse.Namespace) -> None:
    from serving import blocklist

    change = blocklist.block if args.what == "block" else blocklist.unblock
    found = change(store(args), args.items, reason=args.reason)
    print(f"{len(found.items)} items are blocked")


def wait_served(args: argparse.Namespace, release_id: str) -> None:
    """With --url and the production channel: until that server answers from the release; ValueError after a minute."""
    if not args.url or args.channel != "production":
        return
    from serving.client import RecommendClient

    started = time.monotonic()
    with RecommendClient(args.url) as client:
        while (served := client.recommend(0, 1).release_id) != release_id:
            if time.monotonic() - started > WAIT_S:
                raise ValueError(
                    f"{args.url} still serves {served} after {WAIT_S:.0f} s; its log says why the new one was refused"
                )
            time.sleep(0.1)
    print(f"{args.url} serves it after {time.monotonic() - started:.1f} s")


def run_sign(args: argparse.Namespace) -> None:
    sign_release(store(args), args.release)
    print(f"{args.release} is signed")


def run_keygen(args: argparse.Namespace) -> None:
    secret, public = signing.make_keys(args.folder, args.name)
    print(f"secret {secret}: ONEREC_SIGNING_KEY={secret} where releases are published, and nowhere else")
    print(f"public {public}: ONEREC_TRUSTED_KEYS={args.folder} where releases are promoted and served")


def run_gc(args: argparse.Namespace) -> None:
    where, keep = store(args), Keep(days=args.days, rollbacks=args.rollbacks)
    if args.apply:
        for release_id in collect(where, args.apply, keep):
            print(f"removed  {release_id}")
        return
    found = plan(where, keep)
    for release_id, why in found.keep.items():
        print(f"keep     {release_id}  {why}")
    for kind, trees in (("remove", found.remove), ("half", found.half)):
        for release_id, size in trees.items():
            print(f"{kind:<7}  {release_id}  {size:,} bytes")
    if found.remove or found.half:
        print(f"nothing was removed; to remove these: onerec release gc --apply {found.token} (with the same options)")
    else:
        print("nothing to remove")
