PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
EXAMPLES := image-classifier variational-autoencoder text-classifier two-tower-recommender seed-patterns
.PHONY: $(EXAMPLES) bench bench-large bench-predict bench-serve bench-spark bench-start build clean comparison demo docs examples format golden help lint soak test test-backends test-build test-distribute test-fast test-faults test-fuzz test-fuzz-server test-jax test-matrix test-matrix-slice test-mutants test-random test-ray test-real test-serving-environments test-spark-cluster test-tf-keras test-torch test-ui

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 26

# uv installs the same wheels as pip, an order of magnitude faster; it comes from PyPI like the rest.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $(READY)

# What they print is for people: without TensorFlow's report on CUDA and MLflow's on its database.
demo $(EXAMPLES): export TF_CPP_MIN_LOG_LEVEL = 3
demo $(EXAMPLES): export MLFLOW_LOGGING_LEVEL = WARNING

demo: $(READY)  ## Train, log, reload without the source, serve and score a subclassed model
	$(BIN)/python examples/demo.py

examples: $(EXAMPLES)  ## Run all of examples/, one after the other

image-classifier: $(READY)  ## Example: custom layers, constructor arguments
	$(BIN)/python examples/image_classifier.py

variational-autoencoder: $(READY)  ## Example: a train_step of one's own, training goes on
	$(BIN)/python examples/variational_autoencoder.py

text-classifier: $(READY)  ## Example: strings in, TextVectorization inside
	$(BIN)/python examples/text_classifier.py

two-tower-recommender: $(READY)  ## Example: a dict of inputs
	$(BIN)/python examples/two_tower_recommender.py

seed-patterns: $(READY)  ## Example: three common ways to write a subclass
	$(BIN)/python examples/seed_patterns.py

test: $(READY)  ## All tests
	$(BIN)/python -m pytest

test-fast: $(READY)  ## The tests that need no Keras, in seconds
	$(BIN)/python -m pytest tests/fast

# Each backend has an environment of its own, without the others. pip and not uv for torch: pip takes a CPU build where
# one is at hand, and the version is one that has it.
.venvs/jax/.ready: pyproject.toml
	$(PYTHON) -m venv .venvs/jax
	.venvs/jax/bin/python -m pip install --quiet uv
	.venvs/jax/bin/uv pip install --quiet --python .venvs/jax/bin/python -e '.[jax]' pytest
	touch $@

.venvs/torch/.ready: pyproject.toml
	$(PYTHON) -m venv .venvs/torch
	.venvs/torch/bin/python -m pip install --quiet uv torch==2.13.0
	.venvs/torch/bin/uv pip install --quiet --python .venvs/torch/bin/python -e . pytest
	touch $@

.venvs/tf-keras/.ready: pyproject.toml
	$(PYTHON) -m venv .venvs/tf-keras
	.venvs/tf-keras/bin/python -m pip install --quiet uv
	.venvs/tf-keras/bin/uv pip install --quiet --python .venvs/tf-keras/bin/python -e '.[tf-keras]' pytest
	touch $@

test-jax: .venvs/jax/.ready  ## The zoo with Keras on JAX
	KERAS_BACKEND=jax .venvs/jax/bin/python -m pytest tests/test_zoo.py tests/test_graph_backends.py

# Beside each environment one that has what the packages need, and not the packages.
REAL_ENVIRONMENTS := $(foreach name,real-keras real-keras-bare real-tf_keras real-tf_keras-bare,.venvs/$(name)/.ready)
REAL_keras := bayesflow gated-sae-tf keras-bio keras-climate keras-hub keras-rs keras-sciml kerasfactory kgcnn medicai ncps
REAL_tf_keras := spektral tensorflow-recommenders
$(REAL_ENVIRONMENTS): .venvs/%/.ready: $(READY)
	$(PYTHON) -m venv .venvs/$*
	$(BIN)/uv pip install --quiet --python .venvs/$*/bin/python -e '.[$(subst _,-,$(*:-bare=))]'
	$(if $(filter %-bare,$*),$(BIN)/uv pip uninstall --quiet --python .venvs/$*/bin/python $(REAL_$(patsubst real-%-bare,%,$*)))
	touch $@

test-real: $(REAL_ENVIRONMENTS)  ## Models of published packages; writes docs/real_models.md (an hour)
	$(BIN)/python tests/real --environments .venvs

# It goes on where it was stopped, and begins anew when the package or its models have changed.
test-matrix: $(READY) .venvs/jax/.ready .venvs/torch/.ready .venvs/tf-keras/.ready  ## Every Python, oldest and newest, and each backend load what each other logged (an hour)
	PYTHONPATH=tests $(BIN)/python tests/matrix --environments .venvs --uv $(BIN)/uv

test-matrix-slice: $(READY)  ## The same with a few models on this Python only; writes nothing
	PYTHONPATH=tests $(BIN)/python tests/matrix --environments .venvs --uv $(BIN)/uv --slice

test-torch: .venvs/torch/.ready  ## The zoo with Keras on torch
	KERAS_BACKEND=torch .venvs/torch/bin/python -m pytest tests/test_zoo.py tests/test_graph_backends.py

test-backends: $(READY) .venvs/jax/.ready .venvs/torch/.ready  ## Logged on each backend, loaded on each other
	MKS_TENSORFLOW=$(BIN)/python MKS_JAX=.venvs/jax/bin/python MKS_TORCH=.venvs/torch/bin/python \
		$(BIN)/python -m pytest tests/cross

# Executors have what this package requires, and not this package.
.venvs/executor/.ready: $(READY)
	$(PYTHON) -m venv .venvs/executor
	$(BIN)/uv pip install --quiet --python .venvs/executor/bin/python -r pyproject.toml --extra tensorflow
	touch $@

test-spark-cluster: .venvs/executor/.ready  ## spark_udf on a standalone cluster of two workers (needs Java)
	MKS_EXECUTOR=$(CURDIR)/.venvs/executor/bin/python $(BIN)/python -m pytest tests/cluster/test_spark.py

.venvs/ray/.ready: $(READY)
	$(PYTHON) -m venv .venvs/ray
	$(BIN)/uv pip install --quiet --python .venvs/ray/bin/python -r pyproject.toml --extra tensorflow 'ray[data]'
	touch $@

test-ray: $(READY) .venvs/ray/.ready  ## The recipe for Ray Data
	MKS_RAY=$(CURDIR)/.venvs/ray/bin/python $(BIN)/python -m pytest tests/cluster/test_ray.py

test-distribute: $(READY) .venvs/jax/.ready  ## Models trained under tf.distribute and keras.distribution
	MKS_JAX=$(CURDIR)/.venvs/jax/bin/python $(BIN)/python -m pytest tests/cluster/test_distribute.py

test-tf-keras: .venvs/tf-keras/.ready  ## The zoo of Keras 2 subclasses, on tf_keras
	TF_USE_LEGACY_KERAS=1 .venvs/tf-keras/bin/python -m pytest tests/test_zoo.py tests/test_graph_backends.py

bench: bench-predict bench-start bench-serve bench-large  ## All benchmarks, ratios against MLflow's own flavors

bench-predict: $(READY)  ## predict: latency, bulk, overhead, traces, memory
	PYTHONPATH=tests $(BIN)/python benchmarks/predict.py

bench-start: $(READY)  ## Log time, load time, first prediction
	PYTHONPATH=tests $(BIN)/python benchmarks/start.py --peers-default

bench-serve: $(READY)  ## mlflow models serve under load
	PYTHONPATH=tests:examples $(BIN)/python benchmarks/serve.py

bench-spark: .venvs/executor/.ready  ## spark_udf on a standalone cluster of two workers (needs Java)
	MKS_EXECUTOR=$(CURDIR)/.venvs/executor/bin/python PYTHONPATH=tests:examples $(BIN)/python benchmarks/spark.py

bench-large: $(READY)  ## Models of 1 GB, 4 GB, one variable of 3 GB, 10,000 variables (an hour, 16 GB of disk)
	for size in 1gb 4gb one-of-3gb 10000-variables; do PYTHONPATH=tests:examples $(BIN)/python benchmarks/large.py $$size || exit 1; done

test-fuzz: $(READY)  ## A hundred thousand mutations of every reader of the format
	$(BIN)/python tests/reliability/fuzzing.py 100000

# Three servers, one after the other, each asked so often.
REQUESTS ?= 2000
test-fuzz-server: $(READY)  ## Thousands of requests, right and wrong, to mlflow models serve
	PYTHONPATH=tests:examples $(BIN)/python tests/reliability/request_fuzzing.py $(REQUESTS)

SOAK_SECONDS ?= 600
CLIENTS ?= 32
soak: $(READY)  ## Ten minutes of 32 clients, good and bad requests, to mlflow models serve
	PYTHONPATH=tests:examples $(BIN)/python tests/reliability/soak.py $(SOAK_SECONDS) $(CLIENTS)

test-random: $(READY)  ## Three hundred random subclassed models, other ones each time
	MKS_EXAMPLES=300 $(BIN)/python -m pytest tests/test_random_models.py

test-faults: $(READY)  ## Fail and kill at every single write of a save
	MKS_FAULTS=all $(BIN)/python -m pytest tests/reliability/test_faults.py

test-serving-environments: $(READY)  ## Serve and predict with uv and virtualenv, each installing anew (minutes, 10 GB)
	$(BIN)/python -m pytest tests/environments

test-mutants: $(READY)  ## Take each check out of trust.py: every time a test must break
	$(BIN)/python tests/reliability/mutants.py

test-ui: $(READY)  ## MLflow's pages in a real Chromium (apt install chromium chromium-driver)
	$(BIN)/python -m pytest ui

build: $(READY)  ## The wheel and the sdist, in dist/
	rm -rf dist
	$(BIN)/uv build --quiet

test-build: build  ## Install the wheel and the sdist on each Python, and log and load there (minutes)
	$(BIN)/python tests/distribution.py dist --uv $(BIN)/uv

golden: $(READY)  ## Make the golden artifact of a new format version, for this Python
	$(BIN)/python tests/golden/make.py

docs: $(READY)  ## Build the documentation into site/, without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

comparison: $(READY)  ## Write docs/comparison.md: this flavor beside MLflow's and Keras' own ways
	$(BIN)/python benchmarks/comparison.py

clean:  ## Remove what make and the demo made
	rm -rf $(VENV) .venvs demo .mypy_cache .ruff_cache .pytest_cache dist
