"""Render the Triton model repository: `recommend`, and one model `onerec-<release id>` a loaded release.

    render_recommend(repository, config)
    name = render_release(repository, Path("store/releases/<id>"), config)

The templates beside this file (model_repository/) are strict configurations; what is filled in comes from ServingConfig
and from the release. A model's folder appears by one rename, so that Triton never loads half of it.
"""

from __future__ import annotations

import shutil
import string
import uuid
from pathlib import Path

import numpy as np

from models.onerec.config import OneRecConfig
from models.onerec.features import Catalogue
from releases.manifest import MANIFEST, Manifest
from serving.config import MODEL_PREFIX, ServingConfig
from serving.context import Encoder

TEMPLATES = Path(__file__).parent / "model_repository"


def render_recommend(repository: Path, config: ServingConfig) -> str:
    """Returns the model's name."""
    values = _queue(config) | {"instances": config.recommend_instances}
    return _write(repository, "recommend", "recommend", values, {})


def render_release(repository: Path, release: Path, config: ServingConfig) -> str:
    """The model of a release folder; returns its name. Raises ValueError for a folder that is no release."""
    try:
        manifest = Manifest.from_bytes((release / MANIFEST).read_bytes(), f"{release}/{MANIFEST}")
        shapes = Encoder(OneRecConfig.load(release / "model" / "config.json"), Catalogue(np.zeros(0, np.int64))).shapes
    except FileNotFoundError as error:
        raise ValueError(f"{release} is not a release: {error.filename} is missing") from None
    return render_onerec(repository, MODEL_PREFIX + manifest.release_id, shapes, release, config)


def render_onerec(
    repository: Path, name: str, shapes: dict[str, tuple[int, ...]], release: Path, config: ServingConfig
) -> str:
    """A model that answers contexts of these shapes with what lies in `release`; returns its name."""
    dims = {name: ", ".join(map(str, shape)) for name, shape in shapes.items()}
    values = _queue(config) | {
        "instances": config.onerec_instances,
        "kind": f"KIND_{config.device.upper()}",
        "release": str(release.resolve()),
        "max_beam": config.max_beam,
        "warmup": ", ".join(_warmup(dims, size) for size in sorted({1, config.max_batch})),
        **dims,
    }
    # The narrowest beam: zeros are a user without history, and the sample's K and beam lie beside the configuration.
    params = {"warmup/params": np.array([1, 1, 0], np.int32).tobytes()}
    return _write(repository, "onerec", name, values, params)


def remove(repository: Path, name: str) -> None:
    """Take a model's folder away, after Triton has unloaded it."""
    shutil.rmtree(repository / name, ignore_errors=True)


def _queue(config: ServingConfig) -> dict[str, object]:
    return {
        "max_batch": config.max_batch,
        "queue_delay_us": config.queue_delay_us,
        "queue_timeout_us": 1000 * config.queue_timeout_ms,
        "max_queue": config.max_queue,
    }


def _warmup(dims: dict[str, str], batch: int) -> str:
    zeros = (
        f'inputs {{ key: "{name}" value: {{ data_type: TYPE_INT32 dims: [ {shape} ] zero_data: true }} }}'
        for name, shape in dims.items()
    )
    params = 'inputs { key: "params" value: { data_type: TYPE_INT32 dims: [ 3 ] input_data_file: "params" } }'
    return f'{{ name: "batch_{batch}" batch_size: {batch} {" ".join(zeros)} {params} }}'


def _write(repository: Path, template: str, name: str, values: dict[str, object], extra: dict[str, bytes]) -> str:
    staged = repository.parent / f".{name}-{uuid.uuid4().hex}"
    (staged / "1").mkdir(parents=True)
    text = string.Template((TEMPLATES / template / "config.pbtxt").read_text())
    (staged / "config.pbtxt").write_text(text.substitute(values, name=name))
    shutil.copyfile(TEMPLATES / template / "1" / "model.py", staged / "1" / "model.py")
    for path, data in extra.items():
        (staged / path).parent.mkdir(parents=True, exist_ok=True)
        (staged / path).write_bytes(data)
    repository.mkdir(parents=True, exist_ok=True)
    remove(repository, name)
    staged.rename(repository / name)
    return name
