"""`mlclip embed`: nothing is lost, and what is written reads back."""

import numpy as np
import pytest
from clip_cases import images
from PIL import Image
from tiny_clip import config_with, write_clip

import mlclip_jax
from mlclip_jax.backbones import load_backbone_of
from mlclip_jax.cli import main
from mlclip_jax.configs import tai
from mlclip_jax.embeddings.embed import embed_names
from mlclip_jax.embeddings.store import Embeddings, read_embeddings, write_embeddings
from mlclip_jax.provenance import Origin
from mlclip_jax.texts.templates import fill


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_a_folder_of_images(clip, tmp_path, capsys):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, image in zip(("b.png", "a.png", "sub/c.png"), images()):
        Image.fromarray(image).save(folder / name)
    (folder / "labels.csv").touch()
    output = tmp_path / "deep" / "out.npz"
    assert main(["embed", f"--backbone={clip}", f"--images={folder}", f"--output={output}"]) == 0
    captured = capsys.readouterr()
    assert f"3 embeddings in {output}: image (20)" in captured.out
    assert "1 file is no image, and left out: labels.csv" in captured.err
    stored = read_embeddings(output)
    assert stored.names == ("a.png", "b.png", "sub/c.png")
    backbone = mlclip_jax.load_backbone(clip)
    how = {"image_size": (24, 24), "resize": "crop", "decode": "full", "dtype": "float32"}
    assert stored.origin == backbone.origin.replace(**how)
    expected = backbone.encode_images([images()[1], images()[0], images()[2]])
    np.testing.assert_allclose(stored.vectors, expected, rtol=0, atol=1e-6)


def test_a_file_of_texts_and_of_names(clip, tmp_path):
    (tmp_path / "names.txt").write_text("dog\numbrella\n")
    backbone = mlclip_jax.load_backbone(clip)
    command = ["embed", f"--backbone={clip}", f"--texts={tmp_path / 'names.txt'}"]
    assert main([*command, f"--output={tmp_path / 'plain.npz'}"]) == 0
    plain = read_embeddings(tmp_path / "plain.npz")
    np.testing.assert_allclose(plain.vectors, backbone.encode_texts(["dog", "umbrella"]), rtol=0, atol=1e-6)
    template = "--template=a photo of {labels}."
    assert main([*command, template, f"--output={tmp_path / 'prompted.npz'}"]) == 0
    prompted = read_embeddings(tmp_path / "prompted.npz")
    assert prompted.names == plain.names == ("dog", "umbrella")
    expected = backbone.encode_texts(["a photo of a dog.", "a photo of an umbrella."])
    np.testing.assert_allclose(prompted.vectors, expected, rtol=0, atol=1e-6)
    assert prompted.origin.template == "a photo of {labels}."


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory):
    """One that reads texts of CLIP's length."""
    return write_clip(
        tmp_path_factory.mktemp("long"), config_with({"text_config.max_position_embeddings": 77})
    )


def test_names_in_several_templates_have_their_mean_direction_and_length(long_clip, tmp_path):
    """By `mlclip embed`, and by what recipes embed names with."""
    backbone = mlclip_jax.load_backbone(long_clip)
    templates = ("a photo of {labels}.", "the {} at night", "two words: {}")
    (tmp_path / "names.txt").write_text("dog\numbrella\n")
    (tmp_path / "templates.txt").write_text("\n".join(templates))
    each = np.stack([backbone.encode_texts([fill(t, [n]) for n in ("dog", "umbrella")]) for t in templates])
    lengths = np.linalg.norm(each, axis=2, keepdims=True)
    mean = (each / lengths).mean(axis=0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True) * lengths.mean(axis=0)
    given = str(tmp_path / "templates.txt")
    command = ["embed", f"--backbone={long_clip}", f"--texts={tmp_path / 'names.txt'}", f"--template={given}"]
    assert main([*command, f"--output={tmp_path / 'out.npz'}"]) == 0
    stored = read_embeddings(tmp_path / "out.npz")
    assert stored.names == ("dog", "umbrella")
    np.testing.assert_allclose(stored.vectors, expected, rtol=0, atol=1e-5)
    embedded = embed_names(backbone, ["dog", "umbrella"], given)
    np.testing.assert_allclose(embedded.vectors, expected, rtol=0, atol=1e-5)
    # What is recorded needs the file no more.
    (tmp_path / "templates.txt").unlink()
    assert stored.origin.template == embedded.origin.template == "\n".join(templates)
    again = embed_names(backbone, ["dog", "umbrella"], stored.origin.prompt)
    np.testing.assert_array_equal(again.vectors, embedded.vectors)


def test_a_set_of_templates_is_recorded_by_its_name(long_clip, tmp_path):
    (tmp_path / "names.txt").write_text("dog\n")
    command = ["embed", f"--backbone={long_clip}", f"--texts={tmp_path / 'names.txt'}", "--template=imagenet"]
    assert main([*command, f"--output={tmp_path / 'out.npz'}"]) == 0
    assert read_embeddings(tmp_path / "out.npz").origin.template == "imagenet"


def test_tokens_of_several_templates_are_refused(clip, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("dog\n")
    command = ["embed", f"--backbone={clip}", f"--texts={tmp_path / 'names.txt'}", "--template=imagenet"]
    assert main([*command, "--features=text,text_local", f"--output={tmp_path / 'out.npz'}"]) == 2
    assert "text_local is of the tokens of one text, and there are 80 templates" in capsys.readouterr().err


def test_what_is_written_reads_back(tmp_path):
    embeddings = Embeddings(
        {
            "image": np.eye(3, 4, dtype=np.float32),
            "image_local": np.ones((3, 2, 4), np.float32),
            "pair": np.eye(3, 5, dtype=np.float32),
        },
        names=("a", "b", "c"),
        labels=np.array([[1, 0], [0, -1], [1, 1]], np.int8),
        label_names=("cat", "dog"),
        captions=("one", "two", "three"),
        origin=Origin("x", "", "00", image_size=(32, 48), backbone=Origin("y", "main", "11")),
    )
    write_embeddings(tmp_path / "x.npz", embeddings)
    again = read_embeddings(tmp_path / "x.npz")
    assert again.features.keys() == embeddings.features.keys()
    for name, feature in embeddings.features.items():
        np.testing.assert_array_equal(again.features[name], feature)
    np.testing.assert_array_equal(again.labels, embeddings.labels)
    for known in ("names", "label_names", "captions", "origin"):
        assert getattr(again, known) == getattr(embeddings, known)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    embeddings = Embeddings({"image": np.eye(2, dtype=np.float32)})
    write_embeddings(tmp_path / "x.npz", embeddings)
    before = (tmp_path / "x.npz").read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(mlclip_jax.InputError, match=r"cannot write .*x\.npz: No space left on device"):
        write_embeddings(tmp_path / "x.npz", embeddings)
    assert (tmp_path / "x.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_how_the_backbone_encodes_is_chosen_and_recorded(clip, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images()):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    command = ["embed", f"--backbone={clip}", f"--images={tmp_path / 'images'}"]
    settings = ["--image_size=32x48", "--resize=squash", "--dtype=bfloat16", "--shard_parameters"]
    assert main([*command, *settings, f"--output={tmp_path / 'out.npz'}"]) == 0
    assert "bfloat16, images of 32 x 48" in capsys.readouterr().err
    stored = read_embeddings(tmp_path / "out.npz")
    assert stored.origin.image_size == (32, 48)
    assert (stored.origin.resize, stored.origin.dtype) == ("squash", "bfloat16")
    backbone = mlclip_jax.load_backbone(clip, image_size=(32, 48), resize="squash")
    expected = backbone.encode_images(images())
    assert 0 < np.abs(stored.vectors - expected).max() < 3e-2 * np.abs(expected).max()
    assert np.abs(stored.vectors - mlclip_jax.load_backbone(clip).encode_images(images())).max() > 0.1
    for size in ("big", "32x", "1x2x3", "-32"):
        assert main([*command, f"--image_size={size}", f"--output={tmp_path / 'out.npz'}"]) == 2
        assert "is no size: write 448, or 448x336 for height and width" in capsys.readouterr().err


def test_a_recipe_chooses_how_its_backbone_encodes(clip):
    config = tai.get_config("templates")
    config.backbone = str(clip)
    assert load_backbone_of(config).image_size == (24, 24)
    config.encoding.image_size = "32"
    config.encoding.dtype = "bfloat16"
    config.encoding.resize = "squash"
    config.encoding.shard_parameters = True
    backbone = load_backbone_of(config)
    assert (backbone.image_size, backbone.dtype, backbone.resize) == ((32, 32), "bfloat16", "squash")
    kernel = backbone.parameters["image"]["layers"]["0"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
