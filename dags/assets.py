"""What the DAGs leave, as assets: Airflow's lineage page shows who makes what, and other teams' DAGs may follow them.

The DAGs of a day wait for the day's own partition (operators/wait.py); an asset only tells that something is new.
"""

from __future__ import annotations

from airflow.sdk import Asset

FEATURES = Asset(name="onerec_features", uri="onerec://features")
TOKENIZER = Asset(name="onerec_tokenizer", uri="onerec://tokenizer")
RELEASE = Asset(name="onerec_release", uri="onerec://release")
PRODUCTION = Asset(name="onerec_production", uri="onerec://channels/production")
