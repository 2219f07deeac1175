"""Who a number is about: users with much, little or no history; items nobody trained on, and the tail.

    for name, users, relevant in slices(relevant, seen, counts): ...

Legend: U users.
"""

from __future__ import annotations

import numpy as np

HEAD_SHARE = 0.8  # the most popular items that hold this share of the training positives are the head


def user_slices(seen: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Masks [U]: new users saw nothing; heavy ones saw more items than the median of the others, light ones not."""
    count = np.array([len(np.unique(items)) for items in seen])
    new = count == 0
    middle = np.median(count[~new]) if (~new).any() else 0
    heavy = count > middle
    return {"heavy users": heavy & ~new, "light users": ~heavy & ~new, "new users": new}


def item_slices(item_ids: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> dict[str, np.ndarray]:
    """The wanted item ids by class: head, tail, and new ones that no training positive names.

    item_ids, counts: items by number of training positives, most popular first (`floors.popularity`).
    """
    if not len(item_ids):
        return {"head items": wanted[:0], "tail items": wanted[:0], "new items": wanted}
    before = np.cumsum(counts) - counts
    head = item_ids[before < HEAD_SHARE * counts.sum()]
    known = np.isin(wanted, item_ids)
    in_head = np.isin(wanted, head)
    return {"head items": wanted[in_head], "tail items": wanted[known & ~in_head], "new items": wanted[~known]}


def slices(
    relevant: list[np.ndarray], seen: list[np.ndarray], popular: tuple[np.ndarray, np.ndarray]
) -> list[tuple[str, np.ndarray, list[np.ndarray]]]:
    """(name, user numbers, their relevant items) of all users and every slice that is not empty.

    An item slice keeps the users who have a relevant item of that class, and only those items count.
    """
    everyone = np.arange(len(relevant))
    out = [("all", everyone, relevant)]
    out += [(name, everyone[mask], [relevant[i] for i in everyone[mask]]) for name, mask in user_slices(seen).items()]
    wanted = np.unique(np.concatenate(relevant))
    for name, items in item_slices(*popular, wanted).items():
        kept = [r[np.isin(r, items)] for r in relevant]
        users = np.array([i for i, r in enumerate(kept) if len(r)], np.int64)
        out.append((name, users, [kept[i] for i in users]))
    return [row for row in out if len(row[1])]
