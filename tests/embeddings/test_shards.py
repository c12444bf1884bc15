"""Embeddings in shards: complete, aligned, whatever is broken, and however often they are interrupted."""

import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from broken_images import READABLE, UNREADABLE, write_all
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from processes import PATIENCE, free_address
from pyarrow import parquet
from tiny_clip import TINY, config_with, write_clip
from tiny_models import write_case

import mlclip_jax
from mlclip_jax import InputError
from mlclip_jax.cli import main
from mlclip_jax.data.sources import read_folder
from mlclip_jax.data.tables import read_table
from mlclip_jax.embeddings import shards
from mlclip_jax.embeddings.embed import embed_images, encode_images
from mlclip_jax.embeddings.labelled import embed_once
from mlclip_jax.embeddings.rows import Rows, blocks
from mlclip_jax.embeddings.store import read_embeddings, read_manifest


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def backbone(clip):
    return mlclip_jax.load_backbone(clip)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Thirty images of noise, and a table of their labels and captions."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    lines = ["filename,labels,caption"]
    for i in range(30):
        noise = random.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02}.png")
        lines.append(f"{i:02}.png,{'|'.join(['cat'] * (i % 2) + ['dog'] * (i % 3 == 0))},image {i}")
    (folder / "table.csv").write_text("\n".join(lines))
    return folder


LOCAL = ("image", "image_local")


def embed(backbone, source, folder, **settings):
    settings = {"batch_size": 4, "shard_rows": 8} | settings
    embed_images(backbone, source, folder, **settings)
    return read_embeddings(folder)


def unfinish(folder):
    """As a kill leaves it, before the last word was written."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "float16"])
def test_what_is_written_reads_back_as_it_was_computed(backbone, photographs, tmp_path, storage):
    source = read_table(photographs / "table.csv")
    stored = embed(backbone, source, tmp_path / "out", storage=storage, features=LOCAL)
    expected = backbone.encode_images([photographs / name for name in source.names], local=True)
    tolerance = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-11}[storage]
    computed = {"image": expected.embeddings, "image_local": expected.local}
    assert stored.features.keys() == computed.keys()
    for name, exact in computed.items():
        rows = stored.features[name]
        assert rows.dtype == np.float32
        assert rows.shape == exact.shape
        np.testing.assert_allclose(np.asarray(rows), exact, rtol=tolerance, atol=1e-5)
    assert stored.names == source.names
    assert stored.label_names == ("cat", "dog")
    np.testing.assert_array_equal(stored.labels, source.labels)
    assert stored.labels.dtype == np.int8
    assert stored.origin == backbone.image_origin
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["complete"], manifest["embeddings"], manifest["skipped"]) == (True, 30, 0)
    assert manifest["dtype"] == storage
    # As clip-retrieval has it: other programs find vectors and metadata.
    shards = sorted((tmp_path / "out/img_emb").iterdir())
    assert [np.load(path).shape for path in shards] == [(8, 20), (8, 20), (8, 20), (6, 20)]
    table = parquet.read_table(tmp_path / "out/metadata")
    assert table["image_path"].to_pylist() == list(source.names)
    assert table["caption"].to_pylist() == list(source.captions)
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_worker_processes_make_no_difference(backbone, photographs, tmp_path):
    source = read_table(photographs / "table.csv")
    expected = embed(backbone, source, tmp_path / "threads")
    again = embed(backbone, source, tmp_path / "workers", num_workers=2)
    np.testing.assert_array_equal(again.vectors, expected.vectors)
    np.testing.assert_array_equal(again.labels, expected.labels)


def test_broken_images_are_left_out_listed_and_shift_nothing(backbone, tmp_path, caplog):
    caplog.set_level("INFO", "mlclip_jax")
    folder = tmp_path / "images"
    odd_name = os.fsdecode(write_all(folder))
    stored = embed(backbone, read_folder(folder), tmp_path / "out", max_skipped=0.6)
    readable = sorted([*READABLE, odd_name])
    names = [r"caf\xe9.jpg" if name == odd_name else name for name in readable]
    assert stored.names == tuple(names)
    expected = backbone.encode_images([folder / name for name in readable])
    np.testing.assert_allclose(np.asarray(stored.vectors), expected, rtol=0, atol=1e-5)
    listed = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").read_text().splitlines()]
    assert {line["name"] for line in listed} == set(UNREADABLE)
    assert all(line["reason"] for line in listed)
    assert read_manifest(tmp_path / "out")["skipped"] == len(UNREADABLE)
    total = len(READABLE) + len(UNREADABLE) + 1
    assert f"{len(UNREADABLE)} of {total} images could not be read and were left out" in caplog.text


@pytest.mark.parametrize("broken", [{0}, {5, 6, 7}, set(range(8, 16)), {29}, set(range(1, 30, 2))])
def test_labels_stay_with_their_images_whatever_is_skipped(backbone, photographs, tmp_path, broken):
    source = read_table(photographs / "table.csv")
    whole = backbone.encode_images([photographs / name for name in source.names])
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    for i in broken:
        (folder / f"{i:02}.png").write_bytes(b"")
    stored = embed(backbone, read_table(folder / "table.csv"), tmp_path / "out", max_skipped=0.6)
    kept = [i for i in range(30) if i not in broken]
    assert stored.names == tuple(source.names[i] for i in kept)
    np.testing.assert_array_equal(stored.labels, source.labels[kept])
    np.testing.assert_allclose(np.asarray(stored.vectors), whole[kept], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rows", "shards_made"), [(8, 4), (11, 4), (1, 8)])
def test_a_shard_has_as_many_batches_as_fit(backbone, photographs, tmp_path, monkeypatch, rows, shards_made):
    """Of four rows each, but always one; 30 images are 8 batches."""
    monkeypatch.setattr(shards, "SHARD_BYTES", rows * 20 * 4)  # float32, 20 wide
    embed(backbone, read_folder(photographs), tmp_path, shard_rows=1_000)
    assert len(list(tmp_path.glob("img_emb/*.npy"))) == shards_made


def test_too_many_broken_ones_stop_it(backbone, photographs, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    for i in range(3):
        (folder / f"{i:02}.png").write_bytes(b"")
    source = read_table(folder / "table.csv")
    with pytest.raises(InputError, match=r"of 30 images cannot be read, .* 00.png \(an empty file\)"):
        embed(backbone, source, tmp_path / "out", max_skipped=0.05)
    assert (tmp_path / "out/skipped.jsonl").is_file()
    with pytest.raises(InputError, match="is not finished; run its command again"):
        read_embeddings(tmp_path / "out")
    for i in range(3):
        shutil.copy(photographs / f"{i:02}.png", folder)
    assert len(embed(backbone, source, tmp_path / "out", max_skipped=0.05).vectors) == 30
    assert not (tmp_path / "out/skipped.jsonl").exists()  # that of the first attempt


def test_only_missing_shards_are_made_again_and_are_the_same(backbone, photographs, tmp_path, monkeypatch):
    source, out = read_table(photographs / "table.csv"), tmp_path / "out"
    first = np.asarray(embed(backbone, source, out).vectors)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    # As a kill leaves it: one shard without metadata and half of an array, and no complete manifest.
    (out / "metadata/metadata_00001.parquet").unlink()
    (out / "img_emb/img_emb_00001.npy").write_bytes(b"half")
    (out / "img_emb/.img_emb_00001.npy.77.tmp").write_bytes(b"half")
    unfinish(out)
    read = []
    monkeypatch.setattr(source, "read", lambda i, read_it=source.read: read.append(i) or read_it(i))
    again = embed(backbone, source, out)
    assert sorted(read) == list(range(8, 16))
    np.testing.assert_array_equal(again.vectors, first)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"img_emb_00001.npy", "labels_00001.npy"}
    assert not list(out.rglob("*.tmp"))
    read.clear()
    embed(backbone, source, out)
    assert read == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"storage": "float16"}, 'another dtype: "float32", not "float16"'),
        ({"features": LOCAL}, r"another features: \[\"image\"\], not \[\"image\", \"image_local\"\]"),
        (
            {"batch_size": 12},
            "begun with shards of 8, which batches of 12 do not fill; give the --batch_size",
        ),
    ],
)
def test_other_work_in_the_same_folder_is_refused(backbone, photographs, tmp_path, change, words):
    source = read_table(photographs / "table.csv")
    embed(backbone, source, tmp_path / "out")
    unfinish(tmp_path / "out")
    with pytest.raises(InputError, match=words):
        embed(backbone, source, tmp_path / "out", **change)
    assert len(embed(backbone, source, tmp_path / "out", shard_rows=24).vectors) == 30  # keeps those of 8


def test_the_same_backbone_by_another_name_goes_on(clip, backbone, photographs, tmp_path):
    source = read_table(photographs / "table.csv")
    embed(backbone, source, tmp_path / "out")
    shutil.copytree(clip, tmp_path / "moved")
    assert len(embed(mlclip_jax.load_backbone(tmp_path / "moved"), source, tmp_path / "out").vectors) == 30


def test_another_backbone_size_or_dataset_is_refused(clip, backbone, photographs, tmp_path):
    source = read_table(photographs / "table.csv")
    embed(backbone, source, tmp_path / "out")
    other = write_clip(tmp_path / "other", config_with({"projection_dim": 12}, TINY), seed=1)
    for stranger in (mlclip_jax.load_backbone(other), mlclip_jax.load_backbone(clip, image_size=32)):
        with pytest.raises(InputError, match=r"with another origin: .* give another --output"):
            embed(stranger, source, tmp_path / "out")
    shutil.copytree(photographs, tmp_path / "copy")
    elsewhere = read_table(photographs / "table.csv", images=tmp_path / "copy")
    for stranger, words in ((source.select(range(29)), "digest"), (elsewhere, "folder")):
        with pytest.raises(InputError, match=f"holds embeddings with another {words}"):
            embed(backbone, stranger, tmp_path / "out")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/mine.txt").touch()
    with pytest.raises(InputError, match="holds other files; name an empty folder"):
        embed(backbone, source, tmp_path / "notes")


def test_values_too_large_for_float16_are_not_lost_in_silence(backbone, photographs, tmp_path, monkeypatch):
    def large(*arguments, **settings):
        for thing, outputs in type(backbone).encode_pixels(backbone, *arguments, **settings):
            yield thing, [output * 1e6 for output in outputs]

    monkeypatch.setattr(backbone, "encode_pixels", large, raising=False)
    with pytest.raises(InputError, match="too large for float16; give --storage=bfloat16 or float32"):
        embed(backbone, read_table(photographs / "table.csv"), tmp_path / "out", storage="float16")


SHARE = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from mlclip_jax.cli import main
sys.exit(main(sys.argv[3:]))
"""


def test_two_processes_share_the_work(clip, backbone, photographs, tmp_path):
    source = read_table(photographs / "table.csv")
    alone = embed(backbone, source, tmp_path / "alone", batch_size=4)
    images, output = f"--images=table:{photographs / 'table.csv'}", f"--output={tmp_path / 'shared'}"
    arguments = ["embed", f"--backbone={clip}", images, output, "--batch_size=4", "--shard_rows=8"]
    address = free_address()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, address, str(process), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    shared = read_embeddings(tmp_path / "shared")
    # Four devices here, one in each process there: sums are rounded in another order.
    np.testing.assert_allclose(np.asarray(shared.vectors), np.asarray(alone.vectors), rtol=0, atol=1e-5)
    assert shared.names == alone.names
    np.testing.assert_array_equal(shared.labels, alone.labels)


def test_texts_are_stored_alike(clip, backbone, tmp_path, capsys):
    texts = [f"dog {'o' * (i % 4)}{i % 10}" for i in range(20)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    command = ["embed", f"--backbone={clip}", f"--texts={tmp_path / 'texts.txt'}", "--storage=bfloat16"]
    assert main([*command, f"--output={tmp_path / 'out'}"]) == 0
    assert f"20 embeddings in {tmp_path / 'out'}: text (20)" in capsys.readouterr().out
    stored = read_embeddings(tmp_path / "out")
    assert stored.names == tuple(texts)
    exact = backbone.encode_texts(texts)
    np.testing.assert_array_equal(stored.vectors, exact.astype(jnp.bfloat16).astype(np.float32))


def test_clip_retrievals_layout(tmp_path):
    import pyarrow as pa

    whole = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float16)
    for kind in ("img_emb", "metadata"):
        (tmp_path / kind).mkdir()
    for i in range(12):  # not in the order of their names
        np.save(tmp_path / f"img_emb/img_emb_{i}.npy", whole[2 * i : 2 * i + 2])
        paths = [f"{n}.jpg" for n in (2 * i, 2 * i + 1)]
        parquet.write_table(pa.table({"image_path": paths}), tmp_path / f"metadata/metadata_{i}.parquet")
    stored = read_embeddings(tmp_path)
    np.testing.assert_array_equal(stored.vectors, whole.astype(np.float32))
    assert stored.names == tuple(f"{n}.jpg" for n in range(24))
    assert stored.names[3] == "3.jpg"
    assert stored.names[:2] == ("0.jpg", "1.jpg")
    assert stored.labels is None
    np.testing.assert_array_equal(read_embeddings(tmp_path / "img_emb").vectors, whole.astype(np.float32))


def test_shards_that_do_not_fit_are_named(tmp_path):
    np.save(tmp_path / "0.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "1.npy", np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match=r"1\.npy does not go with .*0\.npy"):
        read_embeddings(tmp_path)
    bad = np.zeros((3, 4), np.float32)
    bad[2, 1] = np.nan
    np.save(tmp_path / "1.npy", bad)
    rows = read_embeddings(tmp_path).vectors
    assert rows[:5].shape == (5, 4)
    with pytest.raises(InputError, match=r"1\.npy holds NaN or infinity, in row 2"):
        rows[:]
    for content in (b"", b"half an array"):
        (tmp_path / "1.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*1\.npy as \.npy"):
            read_embeddings(tmp_path)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.data())
def test_rows_are_an_array(tmp_path_factory, sizes, data):
    folder = tmp_path_factory.mktemp("rows")
    parts = [np.random.default_rng(i).normal(size=(n, 3)).astype(np.float32) for i, n in enumerate(sizes)]
    for i, part in enumerate(parts):
        np.save(folder / f"{i}.npy", part)
    rows = Rows([folder / f"{i}.npy" for i in range(len(parts))])
    whole = np.concatenate(parts)
    assert (rows.shape, len(rows), rows.nbytes) == (whole.shape, len(whole), whole.nbytes)
    np.testing.assert_array_equal(rows, whole)
    np.testing.assert_array_equal(np.concatenate([*blocks(rows), np.zeros((0, 3))]), whole)
    start, stop = sorted(data.draw(st.tuples(st.integers(-9, 40), st.integers(-9, 40))))
    np.testing.assert_array_equal(rows[start:stop], whole[start:stop])
    if len(whole):
        indices = data.draw(st.lists(st.integers(-len(whole), len(whole) - 1), max_size=20))
        np.testing.assert_array_equal(rows[np.array(indices, int)], whole[np.array(indices, int)])
        np.testing.assert_array_equal(rows[-1], whole[-1])
    mask = np.arange(len(whole)) % 2 == 0
    np.testing.assert_array_equal(rows[mask], whole[mask])
    with pytest.raises(IndexError):
        rows[np.array([len(whole)])]


def test_what_is_kept_of_images_follows_the_images(backbone, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "images")
    source = read_table(tmp_path / "images/table.csv")
    first = read_embeddings(embed_once(source, backbone, tmp_path / "kept"))
    assert (
        read_embeddings(embed_once(source, backbone, tmp_path / "kept")).vectors[0].tolist()
        == first.vectors[0].tolist()
    )
    assert len(list((tmp_path / "kept").iterdir())) == 1
    shutil.copy(photographs / "01.png", tmp_path / "images/00.png")
    changed = read_embeddings(embed_once(source, backbone, tmp_path / "kept")).vectors
    np.testing.assert_allclose(changed[0], first.vectors[1], rtol=0, atol=1e-5)


def test_what_lies_beside_the_images_may_change(backbone, photographs, tmp_path):
    shutil.copytree(photographs, tmp_path / "images")
    embed(backbone, read_folder(tmp_path / "images"), tmp_path / "out")
    unfinish(tmp_path / "out")
    (tmp_path / "images/Thumbs.db").touch()
    assert len(embed(backbone, read_folder(tmp_path / "images"), tmp_path / "out").vectors) == 30


def test_files_that_were_lost_are_missed(backbone, photographs, tmp_path):
    out = tmp_path / "out"
    embed(backbone, read_table(photographs / "table.csv"), out, storage="bfloat16")
    with pytest.raises(InputError, match=r"holds uint16, where float32 are needed"):
        read_embeddings(out / "img_emb")
    (out / "labels/labels_00000.npy").unlink()
    with pytest.raises(InputError, match=r"labels has 22 rows for 30 embeddings; copy all its files"):
        read_embeddings(out)
    (out / "metadata/metadata_00002.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"cannot read .*metadata_00002.* as Parquet"):
        embed(backbone, read_table(photographs / "table.csv"), out, storage="bfloat16")
    (out / "manifest.json").write_text('{"version": 1}')
    with pytest.raises(InputError, match=r"cannot read .*manifest\.json as a manifest of `mlclip embed`"):
        read_embeddings(out)


def test_an_npz_is_written_whole_and_a_kill_afterwards_blocks_nothing(clip, photographs, tmp_path):
    images, output = f"--images=table:{photographs / 'table.csv'}", tmp_path / "x.npz"
    command = ["embed", f"--backbone={clip}", images, f"--output={output}"]
    assert main(command) == 0
    assert len(read_embeddings(output).vectors) == 30
    (tmp_path / ".x.npz.finished/img_emb").mkdir(parents=True)  # as a kill leaves it
    assert main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_the_limit_holds_for_all_processes_together(backbone, photographs, tmp_path, monkeypatch):
    folder = tmp_path / "images"
    shutil.copytree(photographs, folder)
    for i in (0, 8):  # one in the share of each of two processes
        (folder / f"{i:02}.png").write_bytes(b"")
    source = read_table(folder / "table.csv")
    monkeypatch.setattr(shards.jax, "process_count", lambda: 2)
    monkeypatch.setattr(shards.jax, "process_index", lambda: 0)
    settings = {"batch_size": 4, "shard_rows": 8, "max_skipped": 0.05}
    embed_images(backbone, source, tmp_path / "out", **settings)
    monkeypatch.setattr(shards.jax, "process_index", lambda: 1)
    with pytest.raises(
        InputError, match=r"2 of 30 images cannot be read, and max_skipped=0\.05 allows fewer"
    ):
        embed_images(backbone, source, tmp_path / "out", **settings)


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import numpy as np
from mlclip_jax.embeddings.store import read_embeddings
rows = read_embeddings(sys.argv[1]).vectors
assert (rows[:] == np.arange(200)[:, None]).all()
assert (rows[np.arange(199, -1, -1)] == np.arange(199, -1, -1)[:, None]).all()
"""


def test_more_shards_than_files_may_be_open(tmp_path):
    for i in range(200):
        np.save(tmp_path / f"{i}.npy", np.full((1, 3), i, np.float32))
    subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blip")
    write_case(folder, "blip")
    return mlclip_jax.load_backbone(folder)


def test_features_of_images_and_their_captions(blip, photographs, tmp_path):
    """Each row's text and pair are those of its own caption, also beside an image that cannot be read."""
    source = read_table(photographs / "table.csv")
    for name in source.names:
        shutil.copy(photographs / name, tmp_path)
    shutil.copy(photographs / "table.csv", tmp_path)
    (tmp_path / "05.png").write_bytes(b"no image")
    source = read_table(tmp_path / "table.csv")
    features = ("pair", "text_local", "image", "text")
    stored = embed(blip, source, tmp_path / "out", features=features, max_skipped=0.1)
    assert list(stored.features) == list(features)
    kept = [i for i in range(30) if i != 5]
    assert stored.names == tuple(source.names[i] for i in kept)
    assert stored.captions == tuple(source.captions[i] for i in kept)
    images, captions = ([tmp_path / source.names[i] for i in kept], [source.captions[i] for i in kept])
    texts = blip.encode_texts(captions, local=True)
    pair, _ = blip.encode_pairs(images, captions)
    expected = {"image": blip.encode_images(images), "text": texts.embeddings, "pair": pair}
    for name, exact in expected.items():
        np.testing.assert_allclose(stored.features[name], exact, rtol=0, atol=2e-6 * np.abs(exact).max())
    tokens = stored.features["text_local"]
    assert tokens.shape == (29, blip.context_length, 20)
    length = texts.local.shape[1]
    np.testing.assert_allclose(tokens[:][:, :length], texts.local, rtol=0, atol=1e-5)
    assert not tokens[:][:, length:].any()
    assert read_manifest(tmp_path / "out")["features"] == list(features)
    at_once = encode_images(blip, images, features, captions)
    for name, feature in at_once.features.items():
        np.testing.assert_allclose(feature, stored.features[name], rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="28 captions for 29 images; give one for each"):
        encode_images(blip, images, features, captions[1:])


def test_features_that_cannot_be_made(clip, photographs, tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain/a.png")
    (tmp_path / "names.txt").write_text("cat\n")
    command = ["embed", f"--backbone={clip}", f"--output={tmp_path / 'out'}"]
    plain, texts = f"--images={tmp_path / 'plain'}", f"--texts={tmp_path / 'names.txt'}"
    captioned = f"--images=table:{photographs / 'table.csv'}"
    for flags, message in (
        ([plain, "--features=image,text"], "text is a feature of images with captions, and these have none"),
        ([plain, "--features=imgae"], "invalid --features=imgae: must be some of image, image_local, text"),
        ([plain, "--features=image,image"], "invalid --features=image,image: must be some of"),
        ([texts, "--features=image"], "invalid --features=image: must be some of text, text_local"),
        ([captioned, "--features=pair"], "text 2 x 24; quick_gelu)) makes no pair"),
    ):
        assert main([*command, *flags]) == 2
        assert message in capsys.readouterr().err


def test_manifests_of_the_first_release_are_read(backbone, photographs, tmp_path):
    source = read_table(photographs / "table.csv")
    stored = embed(backbone, source, tmp_path / "out", features=LOCAL)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    del manifest["features"]
    old = manifest | {"version": 1, "kind": "img_emb", "local": True}
    old["origin"] |= {"position_embeddings": None}
    (tmp_path / "out/manifest.json").write_text(json.dumps(old))
    again = read_embeddings(tmp_path / "out")
    assert list(again.features) == list(LOCAL)
    assert again.origin == stored.origin
