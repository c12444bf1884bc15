"""A step of TaI-Adapter beside its matrix products alone, JAX's random numbers, the usual loop in torch, and
sixteen runs at once.

bash launch/test.sh --parity -n 0 -m slow -s tests/training/test_speed.py
"""

import functools
import statistics
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from processes import PLATFORM

from mlclip_jax import methods
from mlclip_jax.configs import tai
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.run_parallel import make_runs_mesh, run_parallel
from mlclip_jax.distributed.sharding import make_mesh, place, replicated
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.perturbation import make_perturbation
from mlclip_jax.training import step as step_module
from mlclip_jax.training.optimizers import make_optimizer

pytestmark = [pytest.mark.slow, pytest.mark.parity]
NUMBER, LABELS, BATCH, STEPS = 10_000, 80, 64, 50  # texts; steps of a chunk
RUNS = 9  # in turn; what counts are the medians


@pytest.fixture
def texts(width):
    """Embeddings and labels (N, D) and (N, K), and which of them each step takes."""
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(NUMBER, width)).astype(np.float32)
    labels = (random.random((NUMBER, LABELS)) < 0.03).astype(np.int8)
    return embeddings, labels, random.integers(0, NUMBER, (STEPS, BATCH)).astype(np.int32)


def ours(texts, hidden, depth, num_runs=0):
    """A run alone, or so many as a sweep trains them at once."""
    embeddings, labels, indices = texts
    config = ConfigDict(tai.get_config("embeddings"))
    config.method.update(hidden=hidden, depth=depth)
    class_embeddings = np.zeros((LABELS, embeddings.shape[1]), np.float32)
    graph, parameters, _ = split_trainable(
        methods.find(config.method).make(class_embeddings, rngs=nnx.Rngs(0))
    )
    optimizer, hyper = make_optimizer(config), step_module.hyper_of(config)
    loss = step_module.make_loss({"name": "binary_cross_entropy"})
    step = step_module.make_train_step(graph, optimizer, loss, make_perturbation(config.perturbation))
    chunk = step_module.make_chunk(step)
    data = {"image": embeddings, "labels": labels, "is_text": np.ones(NUMBER, bool)}
    state = step_module.initial_state(parameters, optimizer(hyper))
    mesh = make_mesh(jax.devices()[:1])
    if num_runs:
        run = run_parallel(chunk, make_runs_mesh(jax.devices()[:1]))
        state, hyper, indices = jax.tree.map(
            lambda leaf: jnp.stack([leaf] * num_runs), (state, hyper, indices)
        )
    else:
        run = data_parallel(chunk, "shard_map", mesh)
    state, data = (place(tree, replicated(mesh)) for tree in (state, data))

    def work():
        nonlocal state
        state, _ = jax.block_until_ready(
            run(state, {}, data, indices, np.arange(STEPS, dtype=np.int32), hyper)
        )

    work()
    return work


def products(texts, hidden, depth):
    """Those of the forward and the backward pass, in a scan as well."""
    embeddings, _, indices = texts
    widths = [embeddings.shape[1], *[hidden] * (depth - 1), LABELS]
    kernels = [jax.random.normal(jax.random.key(0), sizes) / np.sqrt(sizes[0]) for sizes in pairwise(widths)]

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(gradients, kernels, embeddings, indices):
        def step(_, rows):
            inputs = [embeddings[rows]]
            for kernel in kernels:
                inputs.append(inputs[-1] @ kernel)
            upstream, gradients = inputs.pop(), []
            for kernel in reversed(kernels):
                gradients.insert(0, inputs.pop().T @ upstream)
                upstream = upstream @ kernel.T if inputs else upstream
            return gradients, None

        return jax.lax.scan(step, gradients, indices)[0]

    gradients = [jnp.zeros_like(kernel) for kernel in kernels]
    embeddings = jnp.asarray(embeddings)

    def work():
        nonlocal gradients
        gradients = jax.block_until_ready(chunk(gradients, kernels, embeddings, indices))

    work()
    return work


def with_torch(texts, hidden, depth):
    import torch

    device = "cpu" if PLATFORM == "cpu" else "cuda"
    embeddings, labels, indices = (torch.tensor(array, device=device) for array in texts)
    labels = labels.float()
    *widths, last = embeddings.shape[1], *[hidden] * (depth - 1)
    hidden_layers = [
        layer
        for sizes in pairwise((*widths, last))
        for layer in (torch.nn.Linear(*sizes), torch.nn.ReLU(), torch.nn.Dropout(0.1))
    ]
    model = torch.nn.Sequential(*hidden_layers, torch.nn.Linear(last, LABELS)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)  # faster than `foreach` here
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=1_000_000)
    loss = torch.nn.BCEWithLogitsLoss()

    def work():
        for rows in indices:
            batch = embeddings[rows]
            noise = torch.randn_like(batch)
            batch = batch + 12 * noise / noise.norm(dim=1, keepdim=True)
            optimizer.zero_grad()
            loss(model(batch), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    return work


def milliseconds_of(works):
    """Of a step of each, in every round: they take turns."""
    milliseconds = {name: [] for name in works}
    for _ in range(RUNS):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            milliseconds[name].append(1000 * (time.perf_counter() - start) / STEPS)
    return milliseconds


def ratio(milliseconds, slow, fast):
    return statistics.median(np.divide(milliseconds[slow], milliseconds[fast]))


@pytest.mark.parametrize("width", [512, 1024])
@pytest.mark.parametrize(("hidden", "depth"), [(512, 3), (2048, 4)])
def test_a_step_is_faster_than_with_torch(texts, width, hidden, depth, monkeypatch):
    make = {"ours": ours, "products": products, "torch": with_torch}
    works = {name: way(texts, hidden, depth) for name, way in make.items()}
    monkeypatch.setattr(step_module, "make_key", jax.random.key)
    works["random numbers of JAX"] = ours(texts, hidden, depth)
    measured = milliseconds_of(works)
    medians = ", ".join(f"{name} {statistics.median(own):.3f}" for name, own in measured.items())
    print(f"\nwidth {width}, hidden {hidden}, {depth} layers: ms a step: {medians}")
    for slow, fast in (("ours", "products"), ("torch", "ours"), ("random numbers of JAX", "ours")):
        print(f"{slow} over {fast} {ratio(measured, slow, fast):.2f}")
    assert ratio(measured, "torch", "ours") > 1


@pytest.mark.skipif(PLATFORM == "cpu", reason="there a sweep trains one run at a time on each device")
@pytest.mark.parametrize("width", [512])
def test_sixteen_runs_at_once_cost_less_than_four(texts):
    measured = milliseconds_of({number: ours(texts, 512, 3, number) for number in (0, 16)})
    print(f"\nsixteen runs at once over one alone: {ratio(measured, 16, 0):.2f}")
    assert ratio(measured, 16, 0) < 4
