"""`onerec release`: look at releases and move the channels.

onerec release list            onerec release rollback
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cli.options import add_workspace, command, store
from releases import channels, describe, gates, signing
from releases.collect import Keep, collect, plan
from releases.publish import sign_release


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

    signed = command(actions, "sign", "sign a release that is there", "onerec release sign 2022-05-05-0123456789ab")
    signed.add_argument("release")
    signed.set_defaults(run=run_sign)

    keys = command(actions, "keygen", "make a pair of signing keys", "onerec release keygen keys --name ci-2026")
    keys.add_argument("folder", type=Path)
    keys.add_argument("--name", default="signer", help="name of the pair (default: signer)")
    keys.set_defaults(run=run_keygen)

    example = "onerec release gc, and when the plan is right: onerec release gc --apply 0123456789ab"
    swept = command(actions, "gc", "releases nobody needs: show them, then remove them", example)
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
    for action in (listed, shown, compared, promoted, rolled, signed, swept):
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
    if args.channel == "production" and not (decision and decision["passed"]):
        why = "no gate has judged it" if decision is None else "a gate failed"
        print(f"warning: {args.release} goes to production although {why}", file=sys.stderr)
    moved = channels.promote(where, args.release, channel=args.channel, reason=args.reason)
    print(f"{args.channel} -> {moved.release_id}")


def run_rollback(args: argparse.Namespace) -> None:
    moved = channels.rollback(store(args), args.channel, reason=args.reason)
    print(f"{args.channel} -> {moved.release_id}")


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
