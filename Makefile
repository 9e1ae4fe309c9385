# Every target makes what it needs, once. `make help` lists them.
SHELL := /bin/bash
PROFILE ?= cpu
VENV := .venv
QUANTIZE_VENV := .venv-quantize
PY := $(VENV)/bin/python
READY := $(VENV)/.ready-$(PROFILE)
QUANTIZE_READY := $(QUANTIZE_VENV)/.ready-$(PROFILE)
JOBS ?= $(shell nproc)
# Tests that start nothing and time nothing: they may run side by side.
FAST := tests/unit tests/architecture tests/weights
# Tests of processes and sockets, which mostly wait: twice as many, each file by one process.
WAITING := tests/contract tests/browser
WAITING_TESTS := $(PY) -m pytest -n $$((2 * $(JOBS))) --dist loadfile
CONFIG := configs/local$(if $(filter gpu,$(PROFILE)),-gpu).yaml
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Serve's HAProxy ingress: without these everything works, slower.
export RAY_SERVE_ENABLE_HA_PROXY ?= 1
export RAY_SERVE_THROUGHPUT_OPTIMIZED ?= 1
export RAY_SERVE_HAPROXY_BINARY_PATH ?= $(CURDIR)/$(VENV)/bin/quantile-haproxy
# HAProxy keeps no place for an hour for a client that stops in the middle of a body (decision 0021),
# and ends no stream of an hour when a replica comes or goes (decision 0022).
export RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S ?= 60
# A request that a killed router replica had not answered is asked of another one (decision 0024).
export RAY_SERVE_HAPROXY_RETRY_ON ?= conn-failure empty-response
export RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S ?= 3600
export RAY_SERVE_PORT_QUARANTINE_S ?= 150
# The same authentication for `serve run` and for the commands that talk to it.
export RAY_AUTH_MODE ?= token
# Where the console looks for the last campaign and rollout.
export QUANTILE_REPORTS_DIR ?= $(CURDIR)/reports

.PHONY: help demo serve family family-table pipeline test test-fast test-gpu test-starts test-gate check format bench-relay bench-load bench-plan cluster-check cluster-drill drill-store bench-store clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: setup ## build the variants, serve them, ask them, load them, print one table
	quantile demo --config $(CONFIG)

serve: family ## serve the variants until Ctrl-C (PROFILE=gpu: vLLM's GPU build, configs/local-gpu.yaml)
	serve run $(CONFIG)

family: setup ## make the reference model's variants (instant when they exist)
	quantile reference build

test: check $(QUANTIZE_READY) ## everything: check, unit, Serve with fake engines, every variant in real engines
	.ci/install-browser
	.ci/install-prometheus
	.ci/install-kubectl
	.ci/install-redis
	$(PY) -m pytest -n $(JOBS) $(FAST)
	quantile reference build --all
	$(WAITING_TESTS) $(WAITING); waiting=$$?; \
	  $(PY) -m pytest $(FAST:%=--ignore=%) $(WAITING:%=--ignore=%) && exit $$waiting

family-table: setup ## every recipe made, gated, served, judged and timed, in one table: about 40 minutes
	quantile family

pipeline: setup ## baseline, INT8, 4 bits, each validated, a recommendation, a checklist: about 15 minutes
	quantile pipeline configs/pipelines/reference.yaml

test-fast: $(READY) ## what needs neither Ray nor vLLM: under ten minutes
	$(PY) -m pytest -n $(JOBS) $(FAST)
	$(WAITING_TESTS) tests/contract

test-gpu: $(READY) $(QUANTIZE_READY) ## on one GPU, PROFILE=gpu, under 10 minutes once its variants are made: plan against bytes, starts, a killed neighbour
	$(PY) -m tests.gpu.formats $${QUANTILE_GPU_TESTS_DEVICE:-gpu}
	QUANTILE_GPU_TESTS_DEVICE=$${QUANTILE_GPU_TESTS_DEVICE:-gpu} $(PY) -m pytest tests/gpu -s

test-starts: family ## four engines started at once, 20 times, replicas killed: about 15 minutes
	QUANTILE_TEST_START_ROUNDS=20 $(PY) -m pytest -s tests/engine_cpu/test_start_gate.py

test-gate: family $(QUANTIZE_READY) ## 60 broken variants caught, 20 honest ones passed, in real vLLM: about 10 minutes
	QUANTILE_TEST_GATE_SEEDS=20 $(PY) -m pytest -s tests/engine_cpu/test_gate_acceptance.py

cluster-check: $(READY) ## cluster/ without a cluster: rendered, held against schemas and itself, in one table
	.ci/install-kubectl
	$(PY) -m cluster.check

cluster-drill: $(READY) ## a cluster on this machine (root): head and hosts killed under load, KubeRay's autoscaler, in one table
	.ci/install-redis
	$(PY) -m pytest -s tests/cluster_drill

drill-store: $(READY) ## pull 1 GiB killed ten times by SIGKILL; four pulls at once
	QUANTILE_TEST_STORE_MIB=1024 $(PY) -m pytest -s --timeout 900 tests/contract/test_store_pull.py -k TestProcesses

bench-store: $(READY) ## MiB/s of `quantile store pull` against boto3's own download_file
	$(PY) -m tests.fakes.bench_store

check: $(READY) ## lint, format, types, architecture, the production plan
	ruff check .
	ruff format --check .
	mypy
	$(PY) -m pytest -q tests/architecture
	quantile plan configs/prod.yaml --check

format: $(READY) ## put the code in order
	ruff check --fix .
	ruff format .

bench-relay: $(READY) ## CPU per relayed token, against HAProxy and a DeploymentHandle
	quantile bench overhead

bench-load: $(READY) ## CPU per token of the load client, and whether its pacer holds 300 requests/s
	$(PY) -m loadtests.bench sse
	$(PY) -m loadtests.bench pacer

bench-plan: $(READY) ## seconds of `quantile plan` on 1,000 variants and 4,000 GPUs, and of its packing
	$(PY) -m serve_app.fleet.bench
	$(PY) -m serve_app.planning.bench

clean: ## remove the environments and reports (not the cache of built variants)
	rm -rf $(VENV) $(QUANTIZE_VENV) reports

.PHONY: setup
setup: $(READY) $(QUANTIZE_READY)

$(READY): pyproject.toml constraints.txt .ci/make-venv
	.ci/make-venv $(VENV) serving $(PROFILE)

$(QUANTIZE_READY): serve_app/quantize/constraints.txt .ci/make-venv
	.ci/make-venv $(QUANTIZE_VENV) quantize $(PROFILE)
