"""`onerec features`: fill the online store for an interval, and push live events into it.

onerec features materialize --start 2022-05-05T00:00+08:00 --end 2022-05-06T00:00+08:00
onerec features push --user 42 --item 7 --label is_click
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys

from cli.options import add_workspace, command, day, workspace


def add(commands) -> None:
    example = "onerec features push --user 42 --item 7 --label is_click"
    group = command(commands, "features", "fill the online store, push live events", example)
    actions = group.add_subparsers(title="actions", metavar="ACTION", required=True)

    example = "onerec features materialize --start 2022-05-05T00:00+08:00 --end 2022-05-06T00:00+08:00"
    filled = command(actions, "materialize", "the newest rows of an interval into the online store", example)
    filled.add_argument("--start", type=instant, required=True, help="an instant with its time zone")
    filled.add_argument("--end", type=instant, required=True, help="an instant with its time zone")
    filled.set_defaults(run=run_materialize)

    example = "onerec features push --user 42 --item 7 --label is_click --day 2022-05-05"
    pushed = command(actions, "push", "a live event, served at once", example)
    pushed.add_argument("--user", type=int, required=True)
    pushed.add_argument("--item", type=int, required=True)
    pushed.add_argument("--label", action="append", default=[], help="what the user did; may be given several times")
    pushed.add_argument("--play-ms", type=int, default=-1, help="how long the item was played (default: unknown)")
    pushed.add_argument("--time", type=instant, help="when the item was shown, with its time zone (default: now)")
    pushed.add_argument("--day", type=day, help="items table to take author, tag and duration from (default: none)")
    pushed.set_defaults(run=run_push)

    for action in (filled, pushed):
        add_workspace(action)


def instant(text: str) -> dt.datetime:
    """An argparse type: an instant with its time zone."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no instant; write it as 2022-05-05T00:00+08:00") from None
    if found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} has no time zone; write it as {text}+00:00")
    return found


def run_materialize(args: argparse.Namespace) -> None:
    from feature_repo.store import materialize

    w = workspace(args)
    done = materialize(features=w.features, feature_store=w.feature_store, start=args.start, end=args.end)
    print(f"{done['start']} to {done['end']}: {done['users']['user_seen']} users; online until {done['online_until']}")


def run_push(args: argparse.Namespace) -> None:
    from feature_repo.online import OnlineFeatures
    from feature_repo.push import LiveEvent, LiveEvents

    w = workspace(args)
    event = LiveEvent(
        user_id=args.user,
        item_id=args.item,
        event_time=args.time or dt.datetime.now(dt.UTC),
        labels=tuple(args.label),
        play_ms=args.play_ms,
    )
    items = w.partition("items", args.day).parent if args.day else None
    LiveEvents(w.features, w.feature_store, items=items).push([event])
    short = OnlineFeatures(w.features, w.feature_store).read(args.user).short
    print(f"user {args.user} is served {len(short)} short-term events; the newest items: {short[-5:, 0].tolist()}")
    if args.item not in short[:, 0]:
        print("the event is older than what the tables cover, so it changes nothing", file=sys.stderr)
