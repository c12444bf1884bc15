"""Images per second, from files to embeddings: each part, all together, and the usual way with torch."""

import statistics
import threading
import time

import numpy as np
import pytest
from PIL import Image
from real_data import PHOTOGRAPHS, VOCABULARY, needs_real_data
from tiny_clip import VIT_B_32, read_merges, write_clip

import mlclip_jax
from mlclip_jax.data.pipeline import OnceOrder, Skipped, read_batches
from mlclip_jax.data.sources import read_folder
from mlclip_jax.embeddings.embed import encode_source

pytestmark = [pytest.mark.slow, pytest.mark.parity, needs_real_data]
RUNS = 5  # in turn; what counts are the medians


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), VIT_B_32, merges=read_merges(VOCABULARY))


@pytest.fixture(scope="module", params=["full", "reduced"])
def backbone(request, clip):
    return mlclip_jax.load_backbone(clip, decode=request.param)


def repeated(number):
    """The photographs again and again, `number` of them."""
    source = read_folder(PHOTOGRAPHS / "images")
    return source.select(i % len(source) for i in range(number))


def rate(work, number):
    start = time.perf_counter()
    assert work() == number
    return number / (time.perf_counter() - start)


def in_turn(number, **works):
    """Images per second of several ways to do the same, medians of runs in turn; each ran once before."""
    rates = {name: [] for name in works}
    for run in range(RUNS + 1):
        for name, work in works.items():
            measured = rate(work, number)
            if run:
                rates[name].append(measured)
    return {name: statistics.median(own) for name, own in rates.items()}


def test_the_pipeline_is_as_fast_as_two_bare_threads(backbone):
    number = 5_000
    source, processor = repeated(number), backbone.image_processor

    def bare():
        counts = [0, 0]

        def read(k):
            for i in range(k, number, 2):
                counts[k] += len(processor.pixels(source.read(i))) > 0

        threads = [threading.Thread(target=read, args=(k,)) for k in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts)

    def pipeline():
        batches = read_batches(
            source,
            OnceOrder(range(number), 32),
            32,
            lambda example, _: {"pixels": processor.pixels(example.image)},
            num_threads=2,
        )
        return sum(int((batch.indices >= 0).sum()) for batch in batches)

    rates = in_turn(number, bare=bare, pipeline=pipeline)
    print(f"\n{backbone.decode}: " + ", ".join(f"{name} {r:.0f}" for name, r in rates.items()))
    assert rates["pipeline"] >= 0.9 * rates["bare"]


def test_end_to_end_is_as_fast_as_its_slower_part(backbone):
    number = 320
    source = repeated(number)
    pixels = [backbone.pixels([source.read(i) for i in range(s, s + 32)]) for s in range(0, number, 32)]

    def encoder():
        return sum(len(outputs[0]) for _, outputs in backbone.encode_pixels(enumerate(pixels)))

    def end_to_end():
        skipped = Skipped(source.names, None)
        batches = encode_source(backbone, source, range(number), skipped, batch_size=32)
        return sum(int((indices >= 0).sum()) for indices, _ in batches)

    rates = in_turn(number, encoder=encoder, end_to_end=end_to_end)
    print(f"\n{backbone.decode}: " + ", ".join(f"{name} {r:.1f}" for name, r in rates.items()))
    assert rates["end_to_end"] >= 0.9 * rates["encoder"]  # which is the slower part on a CPU


def test_it_is_faster_than_pillow_transformers_and_torch(backbone, clip):
    import torch
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    number = 192
    source = repeated(number)
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPImageProcessorPil.from_pretrained(clip)
    paths = [PHOTOGRAPHS / "images" / name for name in source.names]

    def with_torch(batch_size):
        count = 0
        with torch.inference_mode():
            for start in range(0, number, batch_size):
                images = [Image.open(path).convert("RGB") for path in paths[start : start + batch_size]]
                inputs = processor(images, return_tensors="pt")
                count += len(np.asarray(model.get_image_features(**inputs).pooler_output))
        return count

    def ours():
        skipped = Skipped(source.names, None)
        batches = encode_source(backbone, source, range(number), skipped, batch_size=32)
        return sum(int((indices >= 0).sum()) for indices, _ in batches)

    rates = in_turn(number, ours=ours, batches_of_32=lambda: with_torch(32), one_by_one=lambda: with_torch(1))
    print(f"\n{backbone.decode}: " + ", ".join(f"{name} {r:.1f}" for name, r in rates.items()))
    assert rates["ours"] > rates["batches_of_32"]


def test_what_a_reduced_scale_changes(clip):
    """In pixels of 0 to 255, and in cosines of what a tower of random weights makes of them."""
    full = mlclip_jax.load_backbone(clip)
    reduced = mlclip_jax.load_backbone(clip, decode="reduced")
    paths = sorted((PHOTOGRAPHS / "images").glob("*.jpg"))
    difference = np.abs(full.pixels(paths).astype(int) - reduced.pixels(paths))
    print(f"\nreduced: pixels differ by {difference.mean():.2f} on average, {difference.max()} at most")
    assert difference.mean() < 4
