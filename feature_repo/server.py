"""The Feast feature server of a store, reading only.

    python -m feature_repo.server --feature-store var/simulated/feature_store --port 6566
    curl -s localhost:6566/get-online-features -H 'content-type: application/json' \\
        -d '{"feature_service": "onerec_v1", "entities": {"user_id": [42]}}'

Feast's own server (`feast serve`) also writes: /push, /write-to-online-store, /materialize, a chat page. Whoever
reaches it could fill the store that recommendations are made from, so only /get-online-features and /health are served
here; rows are written by the materialize step and by `onerec features push`. The profile comes from the environment
(feature_repo/profiles.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fastapi import FastAPI
from feast import FeatureStore

from datasets.errors import DataError
from feature_repo.profiles import REGISTRY, LocalProfile, Profile, profile_from_environment
from feature_repo.store import quiet

SERVED = {("/get-online-features", "POST"), ("/health", "GET")}


def read_only_app(feature_store: Path, profile: Profile | None = None) -> FastAPI:
    """Feast's application with the routes of SERVED alone. Raises DataError when the store was never applied."""
    from feast.feature_server import get_app
    from feast.permissions.server.utils import AuthManagerType, ServerType, init_auth_manager, init_security_manager

    profile = profile or profile_from_environment()
    if isinstance(profile, LocalProfile) and not (feature_store / REGISTRY).is_file():
        raise DataError(f"{feature_store} holds no {REGISTRY}: run a day first (`make daily`), it applies the features")
    feature_store.mkdir(parents=True, exist_ok=True)
    with quiet():
        store = FeatureStore(config=profile.repo_config(feature_store))
        init_security_manager(auth_type=AuthManagerType.NONE, fs=store)
        init_auth_manager(
            auth_type=AuthManagerType.NONE, server_type=ServerType.REST, auth_config=store.config.auth_config
        )
        app = get_app(store)
    kept = [r for r in app.router.routes if {(r.path, m) for m in getattr(r, "methods", None) or ()} & SERVED]
    assert len(kept) == len(SERVED), "Feast renamed a route that is served here"
    app.router.routes[:] = kept
    return app


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feature-store", type=Path, required=True, help="folder of registry and online store")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    parser.add_argument("--port", type=int, default=6566)
    args = parser.parse_args(argv)
    import uvicorn

    try:
        app = read_only_app(args.feature_store)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
