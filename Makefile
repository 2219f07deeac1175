# make daily [DATA=<folder> DATE=<day>]   set up, then run one day        make test   set up, then run the tests
# make up / make down                     local Airflow UI and Triton     make lint   ruff and mypy
SHELL := /bin/bash
PYTHON ?= python3
ML := .venv/ml
ORCH := .venv/orchestrate
INSTALL = $(1)/bin/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes $(2)

.PHONY: daily test lint lock up down bench setup clean
.DELETE_ON_ERROR:

setup: $(ML)/.ready $(ORCH)/.ready

# A stamp a lock file: a second call finds it and does nothing. A half-installed environment has no stamp and is completed.
$(ORCH)/.ready: locks/orchestrate.txt locks/dev-orchestrate.txt
	@echo "setup   orchestrate: Airflow"
	@test -x $(ORCH)/bin/python || $(PYTHON) -m venv $(ORCH)
	@$(call INSTALL,$(ORCH),-r locks/orchestrate.txt -r locks/dev-orchestrate.txt)
	@$(ORCH)/bin/python -m pip check >/dev/null
	@touch $@

TORCH ?= cpu
$(ML)/.ready: locks/ml.txt locks/dev-ml.txt locks/torch-cpu.txt locks/cuda.txt locks/triton.txt pyproject.toml
	@echo "setup   ml: PyTorch, KFP, Feast, Great Expectations, Triton"
	@test -x $(ML)/bin/python || $(PYTHON) -m venv $(ML)
	@if [ $(TORCH) = cuda ] || ! $(call INSTALL,$(ML),-r locks/torch-cpu.txt) 2>/dev/null; then \
		echo "setup   the CUDA build of PyTorch"; $(call INSTALL,$(ML),-r locks/cuda.txt); fi
	@$(call INSTALL,$(ML),-r locks/ml.txt -r locks/dev-ml.txt)
	@$(call INSTALL,$(ML),-r locks/triton.txt)
	@$(ML)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@
