# On a machine with only python3 (3.11 or newer), venv and make:
#   make train   make the environment and train, or go on with the unfinished run of these flags;
#                ALGO= and ARGS= pass through
#   make sweep   make the environment and train many runs by name: ARGS="--variants relu tanh-hr"
#   make report  make the environment and write the page of the runs in ARGS (runs/)
#   make evidence  make the environment and rebuild the page of results/evidence from its tables,
#                with the runs in ARGS, if any
#   make demo    make the environment and check what needs no game, half a minute
#   make test    make the environment and pass the tests; test-long passes the long ones
#   make bench   make the environment and measure speed against this machine's own limit
PYTHON ?= python3
ALGO ?= dqn
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python

# A run that was asked to stop ends with status 75, which is no error of make's. The shell waits for
# it: Ctrl-C reaches both. What is ignored would be ignored by the run, too, so it only notes it.
STOPPABLE = trap : INT;
IS_STOPPED = status=$$?; [ $$status -eq 75 ] || exit $$status

.PHONY: train algo sweep report evidence demo bench test test-long soak lint format board clean

train: algo $(VENV)/.installed
	@$(STOPPABLE) $(RUN) $(ALGO)_atari.py --resume auto $(ARGS); $(IS_STOPPED)

algo:
	@test -f $(ALGO)_atari.py || { \
		echo "make: error: unknown ALGO=$(ALGO): choose one of" *_atari.py | sed 's/_atari.py//g' >&2; exit 2; }

sweep: $(VENV)/.installed
	@$(STOPPABLE) $(RUN) -m lab.sweep $(ARGS); $(IS_STOPPED)

report: $(VENV)/.installed
	@$(RUN) -m lab.report $(or $(ARGS),runs)

evidence: $(VENV)/.installed
	@$(RUN) -m lab.report results/evidence $(ARGS) --out results/evidence

demo: $(VENV)/.installed
	@$(RUN) regression_demo.py $(ARGS)

bench: $(VENV)/.installed
	@$(RUN) -m lab.bench $(ARGS)

test: $(VENV)/.installed-dev
	@$(VENV)/bin/pytest --numprocesses auto --dist loadfile -m "not long"

test-long: $(VENV)/.installed-dev
	@$(VENV)/bin/pytest --numprocesses auto --dist loadfile -m long

soak: $(VENV)/.installed-dev
	@$(RUN) tests/soak.py $(ARGS)

lint: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

board: $(VENV)/.installed
	@$(VENV)/bin/tensorboard --logdir runs $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

# Stamps, written last: an installation that was broken off is taken up again.
$(VENV)/.installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: error: Python 3.11 or newer is needed: make train PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "installing into $(VENV) (torch is large: some minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
