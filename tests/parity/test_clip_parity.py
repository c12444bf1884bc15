"""CLIP against transformers' torch implementation, on files that it saved itself."""

from pathlib import Path

import numpy as np
import pytest
from clip_cases import CASES, TEXTS, images
from tiny_clip import write_clip, write_processing

import mlclip_jax
from mlclip_jax.backbones.weights import BUILT_IN

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

GOLDEN = Path(__file__).parents[1] / "backbones" / "clip_golden.npz"


def save_perturbed_model(folder, config):
    """A fresh torch model, every one of its parameters moved, saved by save_pretrained."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig.from_dict(config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_processing(folder, config)


def torch_embeddings(folder):
    """What transformers' own model, processor and tokenizer make of the images and texts."""
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images(), return_tensors="pt")["pixel_values"]
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        text = model.text_projection(model.text_model(**tokens).pooler_output)
    return image.numpy(), text.numpy()


@pytest.mark.parametrize("case", CASES)
def test_tiny_models_agree_within_1e_5(tmp_path, case):
    save_perturbed_model(tmp_path, CASES[case])
    image, text = torch_embeddings(tmp_path)
    backbone = mlclip_jax.load_backbone(tmp_path)
    np.testing.assert_allclose(backbone.encode_images(images()), image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(backbone.encode_texts(TEXTS), text, rtol=0, atol=1e-5)


def test_the_stored_outputs_are_torchs(tmp_path):
    with np.load(GOLDEN) as golden:
        for case, config in CASES.items():
            image, text = torch_embeddings(write_clip(tmp_path / case, config))
            np.testing.assert_allclose(golden[f"{case}/image"], image, rtol=0, atol=1e-6)
            np.testing.assert_allclose(golden[f"{case}/text"], text, rtol=0, atol=1e-6)


if __name__ == "__main__":  # python tests/parity/test_clip_parity.py FOLDER: writes the stored outputs anew
    import sys

    outputs = {}
    for case, config in CASES.items():
        image, text = torch_embeddings(write_clip(Path(sys.argv[1]) / case, config))
        outputs |= {f"{case}/image": image, f"{case}/text": text}
    np.savez(GOLDEN, **outputs)


def test_the_built_in_clip_is_transformers_too():
    image, text = torch_embeddings(BUILT_IN["scenes-clip"])
    backbone = mlclip_jax.load_backbone("scenes-clip")
    np.testing.assert_allclose(backbone.encode_images(images()), image, rtol=0, atol=1e-5)
    np.testing.assert_allclose(backbone.encode_texts(TEXTS), text, rtol=0, atol=1e-5)
