"""Small files that are what their names say, for tests that publish releases nobody loads a model from.

made_up(path, "any text: equal texts make equal files")
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file


def made_up(path: Path, text: str) -> Path:
    """Write a valid .json, .parquet or .safetensors file that holds the text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"text": [text]}), path)
    elif path.suffix == ".safetensors":
        save_file({"text": np.frombuffer(text.encode(), np.uint8)}, path)
    else:
        path.write_text(json.dumps({"text": text}))
    return path
