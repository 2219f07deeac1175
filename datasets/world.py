"""The model behind the simulator: users with tastes that drift, items with topics, a logging policy, noisy feedback.

A caricature, not a claim about people. All of it is drawn from one seed, and all of it is known:

    preference(user u, item i, day d) = 3.5 <taste_u,d , vector_i> + 0.4 quality_i

Tastes and item vectors are unit vectors in DIM dimensions around topic centres. What a user does with an impression is
a noisy function of the preference; what is shown is a noisy function of it too, mixed with popularity and freshness, as
a production recommender would do. Call it through `datasets.simulator`.

Legend of shapes: U users, I items, T topics, D dimensions, R requests, P positions, N impressions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOPICS = 24
DIM = 16
POSITIONS = 6
UPLOADED_BEFORE = 0.7
DRIFT = 0.12
RESENT = 0.003
"""Share of impressions that the simulated client sends twice: real logs hold exact copies."""

WORDS = {
    "cooking": "noodles recipe spicy kitchen dinner soup baking",
    "football": "goal match league striker penalty coach derby",
    "dance": "choreography steps studio hiphop ballet rhythm stage",
    "travel": "mountain beach passport hotel island train sunset",
    "cats": "kitten purr whiskers litter meow fluffy paws",
    "dogs": "puppy walk leash fetch shepherd bark treat",
    "gaming": "boss level console speedrun quest pixel multiplayer",
    "makeup": "lipstick foundation eyeliner blush palette glow brush",
    "fitness": "squat protein marathon stretch gym plank cardio",
    "cars": "engine turbo drift wheel garage electric horsepower",
    "music": "guitar chorus piano melody concert drummer lyrics",
    "comedy": "prank joke sketch standup parody laugh punchline",
    "science": "planet experiment telescope atom physics volcano lab",
    "fashion": "dress runway outfit denim sneakers vintage tailor",
    "farming": "tractor harvest orchard chicken greenhouse soil village",
    "fishing": "river bait rod carp boat angler catch",
    "crafts": "knitting paper clay woodwork glue origami handmade",
    "history": "dynasty castle emperor museum ancient battle archive",
    "finance": "savings market budget stock tax invest salary",
    "parenting": "toddler bedtime stroller school lunchbox diaper playground",
    "movies": "trailer director sequel actor scene thriller cinema",
    "photography": "lens portrait shutter tripod exposure landscape filter",
    "gardening": "roses seeds balcony pruning compost tulip watering",
    "technology": "phone robot laptop chip software battery gadget",
}
FILLER = ("today", "best", "my", "how to", "never", "watch", "first time", "secret", "easy", "new", "real", "daily")


@dataclass(frozen=True, kw_only=True)
class Items:
    """The catalogue. Ids are the row numbers plus 1."""

    vectors_ID: np.ndarray
    quality_I: np.ndarray
    topics_I2: np.ndarray  # main topic, and a second one or -1
    authors_I: np.ndarray
    uploaded_I: np.ndarray  # days after the first log day, negative for older items
    duration_ms_I: np.ndarray
    popularity_I: np.ndarray  # log of the head start that an item has in exposure
    captions: list[str]


@dataclass(frozen=True, kw_only=True)
class Users:
    """The people, with their taste on each day. Ids are the row numbers plus 1."""

    tastes_dUD: np.ndarray  # day, user, dimension
    activity_U: np.ndarray  # expected requests a day
    generosity_U: np.ndarray  # how readily the user gives a like or a comment
    static: dict[str, list[str | None]]


def draw_items(rng: np.random.Generator, centres_TD: np.ndarray, items: int, days: int) -> Items:
    """Items of authors who mostly keep to one topic; 30 % are uploaded during the simulated days."""
    authors = max(items // 6, 1)
    author_topic = rng.integers(TOPICS, size=authors)
    author_I = rng.zipf(1.4, size=items) % authors
    main_I = np.where(rng.random(items) < 0.85, author_topic[author_I], rng.integers(TOPICS, size=items))
    second_I = np.where(rng.random(items) < 0.4, rng.integers(TOPICS, size=items), -1)
    mixed_ID = centres_TD[main_I] + np.where(second_I[:, None] >= 0, 0.5 * centres_TD[second_I], 0)
    old_I = rng.random(items) < UPLOADED_BEFORE
    words = [text.split() for text in WORDS.values()]
    names = list(WORDS)
    captions = []
    for main, second in zip(main_I, second_I):
        own = rng.choice(words[main], size=3, replace=False)
        other = [rng.choice(words[second])] if second >= 0 else []
        captions.append(" ".join([rng.choice(FILLER), names[main], *own, *other]))
    return Items(
        vectors_ID=_unit(mixed_ID + 0.12 * rng.standard_normal((items, DIM))),
        quality_I=rng.standard_normal(items),
        topics_I2=np.stack([main_I, np.where(second_I == main_I, -1, second_I)], axis=1),
        authors_I=author_I + 1,
        uploaded_I=np.where(old_I, -rng.exponential(20, items), days * rng.random(items)),
        duration_ms_I=np.clip(rng.lognormal(10.2, 0.7, items), 5_000, 300_000).astype(np.int64),
        popularity_I=0.6 * rng.standard_normal(items),
        captions=captions,
    )


def draw_users(rng: np.random.Generator, centres_TD: np.ndarray, users: int, days: int, impressions: int) -> Users:
    """Users of two or three topics, whose taste walks a little each day, and who now and then take up a new topic."""
    weights_UT = np.zeros((users, TOPICS))
    favourite_U = rng.integers(TOPICS, size=users)
    weights_UT[np.arange(users), favourite_U] = 1.0
    for share in (0.7, 0.5 * (rng.random(users) < 0.5)):
        weights_UT[np.arange(users), rng.integers(TOPICS, size=users)] += share
    tastes = []
    for _ in range(days):
        tastes.append(_unit(weights_UT @ centres_TD + 0.1 * rng.standard_normal((users, DIM))))
        weights_UT *= 1 + DRIFT * rng.standard_normal((users, TOPICS))
        new_U = rng.random(users) < DRIFT / 4
        weights_UT[new_U, rng.integers(TOPICS, size=new_U.sum())] += 0.8
    activity_U = rng.lognormal(0, 1, users)
    age_U = np.clip(favourite_U // 6 + rng.integers(-1, 2, size=users), 0, 3)
    said_U = rng.random(users) < 0.6
    static = {
        "age_band": [("18-24", "25-34", "35-49", "50+")[age] for age in age_U],
        "city_level": rng.choice(["1", "2", "3", "4"], size=users, p=[0.2, 0.3, 0.3, 0.2]).tolist(),
        "device": rng.choice(["android", "ios", "web"], size=users, p=[0.6, 0.35, 0.05]).tolist(),
        "declared_interest": [list(WORDS)[t] if said else None for t, said in zip(favourite_U, said_U)],
    }
    return Users(
        tastes_dUD=np.stack(tastes),
        activity_U=activity_U / activity_U.sum() * impressions / (days * POSITIONS),
        generosity_U=0.7 * rng.standard_normal(users),
        static=static,
    )


def draw_centres(rng: np.random.Generator) -> np.ndarray:
    """Topic centres [T, D], unit vectors."""
    return _unit(rng.standard_normal((TOPICS, DIM)))


def preference(taste_UD: np.ndarray, vectors_ID: np.ndarray, quality_I: np.ndarray) -> np.ndarray:
    """The true preference [U, I]: higher is better, comparable between users; see the top of the file."""
    return 3.5 * taste_UD @ vectors_ID.T + 0.4 * quality_I


def draw_day(
    rng: np.random.Generator, items: Items, users: Users, seen_UI: np.ndarray, day: int
) -> dict[str, np.ndarray]:
    """The impressions of a day (0 = the first), as columns [N]. Marks what was shown in `seen_UI`.

    `time_ms` counts from the start of the log day. All of a request's items are chosen at once, none seen before.
    """
    requests_U = rng.poisson(users.activity_U)
    user_R = np.repeat(np.arange(len(requests_U)), requests_U)
    rng.shuffle(user_R)
    # Morning, noon and evening; none after 23:00, so that a session ends before the log day does.
    hour_R = np.clip(
        rng.choice([8.5, 12.5, 20.0], size=len(user_R), p=[0.25, 0.25, 0.5]) + rng.normal(0, 1.5, len(user_R)), 0, 23
    )
    order = np.argsort(hour_R, kind="stable")
    user_R, hour_R = user_R[order], hour_R[order]
    true_UI = preference(users.tastes_dUD[day], items.vectors_ID, items.quality_I)
    age_I = day - items.uploaded_I
    exposure_I = items.popularity_I + 0.2 * items.quality_I + 0.8 * np.exp(-np.maximum(age_I, 0) / 2)
    item_RP = np.empty((len(user_R), POSITIONS), dtype=np.int64)
    for r, u in enumerate(user_R):
        open_I = ~seen_UI[u] & (items.uploaded_I * 24 <= day * 24 + hour_R[r])
        score_I = 1.1 * true_UI[u] + exposure_I + rng.gumbel(size=len(open_I))
        top_P = np.argsort(np.where(open_I, -score_I, np.inf), kind="stable")[:POSITIONS]
        item_RP[r] = np.where(open_I[top_P], top_P, -1)
        seen_UI[u, top_P[open_I[top_P]]] = True
    return _feedback(rng, items, users, true_UI, user_R, item_RP, hour_R)


def _feedback(
    rng: np.random.Generator,
    items: Items,
    users: Users,
    true_UI: np.ndarray,
    user_R: np.ndarray,
    item_RP: np.ndarray,
    hour_R: np.ndarray,
) -> dict[str, np.ndarray]:
    requests = len(user_R)
    user_N, item_N = np.repeat(user_R, POSITIONS), item_RP.ravel()
    true_N, generous_N = true_UI[user_N, item_N], users.generosity_U[user_N]
    duration_N = items.duration_ms_I[item_N]
    noise_N = rng.standard_normal(len(user_N))
    share_N = np.exp(1.1 * true_N - 2.8 + 0.8 * noise_N)  # of the duration; over 1: watched again
    play_N = np.where(rng.random(len(user_N)) < 0.1, rng.exponential(800, len(user_N)), share_N * duration_N)
    play_N = np.minimum(play_N, 4.0 * duration_N).astype(np.int64)

    def happens(base: float, slope: float = 1.2, generosity: float = 1.0) -> np.ndarray:
        logit_N = base + slope * true_N + generosity * generous_N
        return (rng.random(len(user_N)) < 1 / (1 + np.exp(-logit_N))).astype(np.int8)

    start_N = np.repeat(hour_R * 3_600_000, POSITIONS).astype(np.int64)
    watched_RP = np.cumsum(play_N.reshape(requests, POSITIONS), axis=1) - play_N.reshape(requests, POSITIONS)
    columns = {
        "user": user_N,
        "item": item_N,
        "time_ms": start_N + watched_RP.ravel(),
        "request": np.repeat(np.arange(requests), POSITIONS),
        "position": np.tile(np.arange(POSITIONS), requests),
        "play_time_ms": play_N,
        "duration_ms": duration_N,
        "is_click": happens(-2.0, generosity=0.2),
        "is_long_view": (play_N >= np.minimum(duration_N, 18_000)).astype(np.int8),
        "is_like": happens(-6.3),
        "is_follow": happens(-8.6),
        "is_comment": happens(-7.8),
        "is_forward": happens(-8.2),
        "is_hate": happens(-6.2, slope=-0.8, generosity=0.0),
        "is_profile_enter": happens(-6.3),
    }
    kept = np.repeat(np.flatnonzero(item_N >= 0), 1 + (rng.random(int((item_N >= 0).sum())) < RESENT))
    return {name: column[kept] for name, column in columns.items()}


def _unit(x_ND: np.ndarray) -> np.ndarray:
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)
