# Every target uses the virtual environment in .venv and makes it when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORPORA := .data/corpora
MIXTURE := .data/mixture

.PHONY: demo test data bench tables clean

demo: $(VENV)/.demo  ## Eight prompts on a real model, dense and elastic
	$(BIN)/elastic-attn demo

test: $(VENV)/.test  ## Style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

data: $(CORPORA)/corpora.json $(MIXTURE)/mixture.json  ## The texts and the records that training draws from

bench: $(VENV)/.demo  ## The records behind the README's tables of times
	$(BIN)/elastic-attn bench --device cpu --json results/bench_cpu.json
	$(BIN)/elastic-attn bench --what overhead --json results/overhead.json

tables: $(VENV)/.demo  ## The README's tables from the records in results/
	$(BIN)/elastic-attn report --tables README.md --results results

clean:  ## Everything that can be made again, the virtual environment included
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .hypothesis demo-report.html

$(CORPORA)/corpora.json: | $(VENV)/.demo
	$(BIN)/python -m elastic_attention.tasks.corpora $(CORPORA)

$(MIXTURE)/mixture.json: | $(CORPORA)/corpora.json
	$(BIN)/python -m elastic_attention.tasks.mixture $(MIXTURE) --corpora $(CORPORA)

# The stamps say which extras are installed, and are old when the requirements change.
$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
