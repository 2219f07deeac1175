"""Take a user out of the online store, whichever it is.

forget_online(features, feature_store, 42)       deletes every row of the user; returns how many views had one
"""

from __future__ import annotations

from pathlib import Path

from feast.infra.online_stores.helpers import get_online_store_from_config

from feature_repo.online_rows import RowOnlineStore, user_key
from feature_repo.profiles import profile_from_environment


def forget_online(feature_store: Path, user: int, *, dry_run: bool = False) -> int:
    """How many rows the online store holds of the user; without `dry_run` they are gone, also from its file."""
    config = profile_from_environment().repo_config(feature_store)
    online = get_online_store_from_config(config.online_store)
    assert isinstance(online, RowOnlineStore)
    return online.forget(config, user_key(user), dry_run=dry_run)
