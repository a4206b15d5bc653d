# make demo    match two real photos with the checkpoint in the package; MODEL=aliked with a published one
# make test    run the tests on the pinned transformers 4.57
# make test-weights    run those that need published weights, which are fetched (some 250 MB)
# make test-export    run the tests of the exported graphs with ONNX Runtime, OpenVINO and Optimum
# make test-export5    the same with transformers 5.5 and its Optimum
# make test-notebooks    run the notebooks; `make notebooks` also keeps what they show
# make web    build the page that matches photos in a browser, in build/web; MODEL=xfeat with a published checkpoint
# make test-web    build it, and test it in Chromium
# make test-app    run the tests of the browser app, in a headless Chromium if there is one
# make app    open the browser app; ARGS="--model aliked"
# make space    write the Hugging Face Space into build/space, and bring spaces/ up to date
# make fuzz    broken configurations, weights, photos, recipes and graphs at random, for a minute; CASES=1000 for longer
# make benchmark    measure published checkpoints beside transformers, kornia and the published code (some 400 MB are fetched);
#                   ARGS=--quick, ARGS=--write-docs
# make benchmark-export    the same for the tables of docs/export.md
# make benchmark-tracking    the same for the tables of docs/tracking.md: made videos with known motion, in eight minutes
# make docs    build the site of docs/ into build/site, with warnings as errors
# make benchmark-serving    load examples/serve.py on loopback at 1, 4 and 16 clients; ARGS=--write-docs for docs/serving.md
# make pack-gpu    write what benchmark-gpu needs into build/gpu
# make benchmark-gpu    test and measure on a GPU in six minutes, without network, with the PyTorch that PYTHON has
# make photos    fetch the photos that the bundled checkpoint learns from, with their licences, into build/photos (Debian)
# make pack-train-gpu    write what train-gpu needs into build/train-gpu
# make train-gpu    train the bundled checkpoint anew on a GPU, without network, with the PyTorch that PYTHON has; it stops
#                   after six minutes and goes on at the next call; ARGS="--plan cpu" on a CPU, for hours
# Each sets itself up in .venv; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do command -v $$p && break; done)
BIN = .venv/bin
BIN5 = .venv-transformers5/bin
BIN_EXPORT = .venv-export/bin
BIN_EXPORT5 = .venv-export5/bin
PLUGIN = --editable ./optimum-plugin
ORT_HEADERS = build/onnxruntime/include
# Tests run in as many processes as there are cores, four at most, of one thread each; PARALLEL= for one process.
PARALLEL ?= --numprocesses=auto --maxprocesses=4 --dist=loadfile
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(1)/python -m pytest
EXPORT_TESTS = tests/export tests/runtime tests/test_benchmarks.py tests/test_registration.py tests/examples/test_model_repository.py
SUPPORTED = import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))

# $(call install,environment,constraints,extra,more packages): the environment variables hold for build requirements, too.
define install
@"$(PYTHON)" -c "$(SUPPORTED)" || { echo "Python 3.10 to 3.13 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
@echo "Installing lightglue-hf[$(3)] in $(1) with $(2); this takes a few minutes ..."
@test -x $(1)/bin/pip || "$(PYTHON)" -m venv $(1)
@PIP_CONSTRAINT="$(2)" PIP_BUILD_CONSTRAINT="$(2)" PIP_DISABLE_PIP_VERSION_CHECK=1 $(1)/bin/pip install -qq --editable ".[$(3)]" $(4)
@touch $(1)/.$(3)
endef

.PHONY: demo app space test test-app test-weights test-transformers5 test-export test-export5 test-notebooks notebooks fuzz web test-web benchmark benchmark-export benchmark-serving benchmark-tracking docs pack-gpu benchmark-gpu photos pack-train-gpu train-gpu quality style clean

demo: .venv/.demo
	@$(if $(MODEL),,HF_HUB_OFFLINE=1) $(BIN)/lightglue-hf demo -o demo.png $(if $(MODEL),--model $(MODEL))

app: .venv-transformers5/.app
	@$(BIN5)/lightglue-hf app $(ARGS)

space:
	@"$(PYTHON)" spaces/build.py

test: .venv/.dev
	@$(call PYTEST,$(BIN)) $(PARALLEL) $(ARGS)

test-app: .venv-transformers5/.dev-app
	@$(call PYTEST,$(BIN5)) tests/test_app.py tests/test_space.py tests/app -m "" $(ARGS)

test-weights: .venv/.dev
	@$(call PYTEST,$(BIN)) -m weights $(ARGS)

test-transformers5: .venv-transformers5/.dev-torchao
	@$(call PYTEST,$(BIN5)) $(PARALLEL) $(ARGS)

test-export: .venv-export/.dev-export $(ORT_HEADERS)
	@$(call PYTEST,$(BIN_EXPORT)) $(EXPORT_TESTS) $(PARALLEL) $(ARGS)

test-export5: .venv-export5/.dev-export $(ORT_HEADERS)
	@$(call PYTEST,$(BIN_EXPORT5)) $(EXPORT_TESTS) $(PARALLEL) $(ARGS)

test-notebooks: .venv-export/.dev-notebooks
	@$(call PYTEST,$(BIN_EXPORT)) tests/test_notebooks.py -m notebooks $(PARALLEL) --dist=load $(ARGS)

notebooks: .venv-export/.dev-notebooks
	@$(BIN_EXPORT)/python -m tests.run_notebooks

web: .venv-export/.dev-web web/node_modules/.package-lock.json
	@$(if $(MODEL),,HF_HUB_OFFLINE=1) $(BIN_EXPORT)/python web/build.py build/web $(if $(MODEL),--model $(MODEL))

test-web: .venv-export/.dev-web
	@if command -v npm > /dev/null; then $(MAKE) --no-print-directory web; else echo "no npm here: the page is not built"; fi
	@$(call PYTEST,$(BIN_EXPORT)) tests/web -m browser $(ARGS)

fuzz: .venv-export/.dev-export
	@$(call PYTEST,$(BIN_EXPORT)) tests/fuzz -m fuzz --hypothesis-profile=fuzz --hypothesis-seed=0 $(ARGS)

benchmark: .venv-export/.benchmark
	@$(BIN_EXPORT)/python -m benchmarks $(ARGS)

benchmark-export: .venv-export/.benchmark
	@$(BIN_EXPORT)/python -m benchmarks --page export.md $(ARGS)

benchmark-tracking: .venv-export/.benchmark
	@$(BIN_EXPORT)/python -m benchmarks.tracking $(ARGS)

docs: .venv-docs/.docs
	@.venv-docs/bin/python docs/site/build.py

benchmark-serving: .venv-export/.dev-export
	@$(BIN_EXPORT)/python -m benchmarks.serving $(ARGS)

pack-gpu: .venv-export/.benchmark
	@$(BIN_EXPORT)/python -m benchmarks.gpu --pack

benchmark-gpu:
	@PYTHONPATH=src "$(PYTHON)" -m benchmarks.gpu $(ARGS)

photos: .venv/.dev
	@$(BIN)/python -m recipes.photos build/photos

pack-train-gpu: .venv/.dev
	@$(BIN)/python -m recipes.tiny --pack

train-gpu:
	@PYTHONPATH=src "$(PYTHON)" -m recipes.tiny --results "$${OUT:-build/train-gpu/results}" $(ARGS)

quality: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

style: .venv/.dev
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-transformers5 .venv-export .venv-export5 .venv-docs dist demo.png benchmark-results build web/node_modules

# The pages name no module that would have to be imported, so the package itself is not installed.
.venv-docs/.docs: docs/site/requirements.txt
	@test -x .venv-docs/bin/pip || "$(PYTHON)" -m venv .venv-docs
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-docs/bin/pip install -qq -r $<
	@touch $@

# ONNX Runtime's headers, which its Python package lacks: those of Debian's package, unpacked and not installed, by an
# index of its own. Where there is no Debian a test is skipped.
$(ORT_HEADERS):
	@mkdir -p $@ build/onnxruntime/apt/partial
	@-command -v apt-get >/dev/null && cd build/onnxruntime && \
	  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >sources.list && \
	  apt="apt-get -qq -o Dir::Etc::SourceList=$$PWD/sources.list -o Dir::Etc::SourceParts=- -o Dir::State::Lists=$$PWD/apt" && \
	  apt="$$apt -o Dir::Cache=$$PWD/apt -o APT::Sandbox::User=root" && $$apt update && $$apt download libonnxruntime-dev && \
	  dpkg-deb --extract libonnxruntime-dev_*.deb . && cp -r usr/include/onnxruntime/. include && rm -r apt usr

.venv/.demo .venv/.dev: .venv/.%: pyproject.toml constraints.txt
	$(call install,.venv,constraints.txt,$*)

.venv-transformers5/.dev-torchao .venv-transformers5/.app .venv-transformers5/.dev-app: .venv-transformers5/.%: pyproject.toml constraints-transformers5.txt
	$(call install,.venv-transformers5,constraints-transformers5.txt,$*)

.venv-export/.dev-export .venv-export/.dev-notebooks .venv-export/.dev-web .venv-export/.benchmark: .venv-export/.%: pyproject.toml optimum-plugin/pyproject.toml constraints.txt constraints-export.txt
	$(call install,.venv-export,constraints.txt constraints-export.txt,$*,$(PLUGIN))

# Optimum Intel 2.2 brings a torchvision, and one that was built for another torch takes transformers down: it goes.
.venv-export5/.dev-export: pyproject.toml optimum-plugin/pyproject.toml constraints-export5.txt
	$(call install,.venv-export5,constraints-export5.txt,dev-export,$(PLUGIN))
	@.venv-export5/bin/pip uninstall -qq --yes torchvision

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	@command -v npm > /dev/null || { echo "npm is needed, which comes with Node.js" >&2; exit 1; }
	@npm ci --prefix web --ignore-scripts --no-audit --no-fund
	@touch $@
