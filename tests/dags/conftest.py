"""These tests run in the orchestrate environment: `.venv/orchestrate/bin/python -m pytest tests/dags`."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

DAGS = Path(__file__).resolve().parents[2] / "dags"

collect_ignore_glob: list[str] = []
if importlib.util.find_spec("airflow") is None:
    # In the ml environment there is nothing here to collect; `make test` runs both environments.
    collect_ignore_glob.append("test_*.py")
else:
    # Airflow reads these when it is imported. It must find neither a home of this machine nor examples.
    os.environ["AIRFLOW_HOME"] = tempfile.mkdtemp(prefix="onerec-airflow-")
    os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"
    os.environ["AIRFLOW__CORE__DAGS_FOLDER"] = str(DAGS)
    sys.path.insert(0, str(DAGS))
