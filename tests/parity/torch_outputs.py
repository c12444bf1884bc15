"""What the original torch code gives for the checkpoints of `tiny_models`; run, it stores that anew.

PYTHONPATH=tests python tests/parity/torch_outputs.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch_models
from clip_cases import images
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import CASES, ENTRIES, OTHER_SIZES, RN50, TEXTS, thinned, write_case

import mlclip_jax

GOLDEN = ENTRIES.with_name("towers_golden.npz")


def build(layout, config, *, positions="pooled"):
    """The torch model of a config, as it comes."""
    torch.manual_seed(0)
    if layout == "open_clip":
        return torch_models.OpenClip(config, quick_gelu=config.get("quick_gelu", False), positions=positions)
    if layout == "timm":
        return torch_models.VGG16() if config["architecture"] == "vgg16" else torch_models.ResNet()
    from transformers import (
        BlipConfig,
        BlipForImageTextRetrieval,
        CLIPConfig,
        CLIPModel,
        ResNetConfig,
        ResNetForImageClassification,
    )

    config_class, model_class = {
        "clip": (CLIPConfig, CLIPModel),
        "blip": (BlipConfig, BlipForImageTextRetrieval),
        "resnet": (ResNetConfig, ResNetForImageClassification),
    }[layout]
    return model_class(config_class.from_dict(config))


def perturb(model, scale=0.05):
    """Moves every parameter and every batch statistic."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(scale * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand_like(buffer))


def save(model, layout, folder):
    """Writes a model's weights (and of transformers', its config) as its library does."""
    if layout in ("clip", "blip", "resnet"):
        model.save_pretrained(folder)
    else:
        name = "open_clip_model" if layout == "open_clip" else "model"
        weights = {key: array.contiguous() for key, array in model.state_dict().items()}
        save_file(weights, Path(folder) / f"{name}.safetensors")


def load(layout, config, folder, **settings):
    """A torch model with the weights of a folder."""
    if layout in ("clip", "blip", "resnet"):
        return type(build(layout, config)).from_pretrained(folder).eval()
    model = build(layout, config, **settings)
    (file,) = Path(folder).glob("*.safetensors")
    model.load_state_dict(load_file(file))
    return model.eval()


def torch_outputs(model, layout, backbone, pictures, texts=TEXTS):
    """What `tiny_models.outputs_of` gives, by torch. Pixels and token ids are the backbone's."""
    pixels = backbone.image_processor.normalise(backbone.pixels(pictures))
    pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        outputs = dict(zip(("image", "image_local"), _image(model, layout, pixels)))
        if backbone.context_length:
            ids, lengths, _ = backbone.tokenizer(texts)
            ids, mask = torch.from_numpy(ids[:, : lengths.max()]).long(), _mask(lengths)
            outputs["text"], tokens = _text(model, layout, ids, mask)
            outputs["text_local"] = tokens * mask[..., None]
        if layout == "blip":
            pairs = [(i, j) for i in range(2) for j in range(len(texts))]
            rows, columns = (torch.tensor(index) for index in zip(*pairs))
            result = model(
                input_ids=ids[columns],
                pixel_values=pixels[rows],
                attention_mask=mask[columns],
                interpolate_pos_encoding=True,
            )
            outputs["pair"], outputs["match"] = result.question_embeds[:, 0], result.itm_score
    return {name: array.numpy() for name, array in outputs.items()}


def torch_token_gradients(model, layout, ids, lengths, weights):
    """Gradients, by token embeddings (b, t, d), of the sum of embeddings times `weights` (b, p)."""
    layer = {
        "clip": lambda: model.text_model.embeddings.token_embedding,
        "open_clip": lambda: model.token_embedding,
        "blip": lambda: model.text_encoder.embeddings.word_embeddings,
    }[layout]()
    embedded = []
    hook = layer.register_forward_hook(lambda *given: embedded.append(given[-1]))
    pooled, _ = _text(model, layout, torch.from_numpy(ids).long(), _mask(lengths))
    hook.remove()
    (gradient,) = torch.autograd.grad((pooled * torch.from_numpy(weights)).sum(), embedded)
    return gradient.numpy()


def _mask(lengths):
    return torch.from_numpy(np.arange(lengths.max())[None] < lengths[:, None]).long()


def _image(model, layout, pixels):
    if layout == "clip":
        hidden = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        tokens = model.visual_projection(model.vision_model.post_layernorm(hidden))
        return tokens[:, 0], tokens[:, 1:]
    if layout == "blip":
        hidden = model.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
        tokens = model.vision_proj(hidden)
        return tokens[:, 0], tokens[:, 1:]
    if layout == "resnet":
        result = model.resnet(pixels)
        return result.pooler_output.flatten(1), result.last_hidden_state.flatten(2).transpose(1, 2)
    return model.image(pixels)


def _text(model, layout, ids, mask):
    if layout == "clip":
        result = model.text_model(ids, attention_mask=mask)
        return model.text_projection(result.pooler_output), model.text_projection(result.last_hidden_state)
    if layout == "blip":
        tokens = model.text_proj(model.text_encoder(ids, attention_mask=mask).last_hidden_state)
        return tokens[:, 0], tokens
    return model.text(ids)


def entries(layout, config):
    """Name and shape of all that a model's file holds."""
    with tempfile.TemporaryDirectory() as folder:
        save(build(layout, config), layout, folder)
        (path,) = Path(folder).glob("*.safetensors")
        with safe_open(path, framework="np") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}


def stored_outputs(case, folder):
    """What is stored of a case whose files are in a folder."""
    layout, config = CASES[case]
    model = load(layout, config, folder)
    stored = {}
    for size in (None, OTHER_SIZES[case]) if case in OTHER_SIZES else (None,):
        backbone = mlclip_jax.load_backbone(folder, image_size=size)
        for name, array in torch_outputs(model, layout, backbone, images()[:3]).items():
            key = f"{case}/{name}" if size is None else f"{case}/{size[0]}x{size[1]}/{name}"
            if size is None or name.startswith("image"):
                stored[key] = thinned(array)
    if case == "open_clip_resnet":
        for positions in ("all", "none"):
            model.visual.positions = positions
            outputs = torch_outputs(model, layout, backbone, images()[:3])
            stored |= {f"{case}/{positions}/{name}": outputs[name] for name in ("image", "image_local")}
    return stored


def main():
    cases = CASES | {"rn50": ("open_clip", RN50)}
    lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(entries(*cases[case]))}" for case in cases)
    ENTRIES.write_text(f"{{\n{lines}\n}}\n")
    stored = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_case(folder, case)
            stored |= stored_outputs(case, folder)
    np.savez_compressed(GOLDEN, **stored)


if __name__ == "__main__":
    main()
