"""What a component runs in: `@component` is `dsl.component` with our image. For compiling only, not for running."""

from __future__ import annotations

import functools
import os

from kfp import dsl

# The image holds the `ml` environment and this repository, so a component installs nothing when it starts.
# A cluster takes it by digest: ONEREC_IMAGE=registry/onerec-ml@sha256:... when the packages are compiled for one.
IMAGE = os.environ.get("ONEREC_IMAGE") or "onerec-ml-python:0.1.0"
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
