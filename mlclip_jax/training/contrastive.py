"""One step of pre-training a CLIP: the model, its contrastive loss over all devices, and what moves it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from mlclip_jax.backbones.clip import CLIP
from mlclip_jax.backbones.configs import CLIPConfig
from mlclip_jax.backbones.saving import END, START
from mlclip_jax.distributed.sharding import AXIS
from mlclip_jax.errors import InputError
from mlclip_jax.losses import binary_cross_entropy
from mlclip_jax.nnx_boundary import merge_module
from mlclip_jax.training.step import Step, apply_gradients
from mlclip_jax.zero_shot import l2_normalize


def contrastive_sum(
    image_embeddings: Float[Array, "B D"],
    text_embeddings: Float[Array, "B D"],
    scale: float | Float[Array | np.ndarray | np.generic, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """CLIP's symmetric loss: each image is to find its text among all texts, and each text its image.

    Runs on every device of the axis `"data"`; candidates are gathered from all of them (Radford et al. 2021,
    figure 3).

    Args:
      image_embeddings, text_embeddings: this device's share of the batch, float32, un-normalised; row i of
        one belongs to row i of the other.
      scale: factor of the cosines, the inverse temperature.

    Returns:
      The sum over this device's pairs of the mean of both cross entropies, and the number of pairs.
    """
    images, texts = l2_normalize(image_embeddings), l2_normalize(text_embeddings)
    own = jax.lax.axis_index(AXIS) * len(images) + jnp.arange(len(images))
    all_images, all_texts = jax.lax.all_gather((images, texts), AXIS, tiled=True)

    def cross_entropy(queries, candidates):
        logits = jnp.asarray(scale) * jnp.matmul(queries, candidates.T, precision="highest")
        matching = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(logits, axis=1) - matching

    losses = (cross_entropy(images, all_texts) + cross_entropy(texts, all_images)) / 2
    return jnp.sum(losses), jnp.array(len(losses), jnp.float32)


class Pretraining(nnx.Module):
    """A CLIP, and where there are labels, a linear head on its image tower that is thrown away afterwards."""

    def __init__(self, config: CLIPConfig, num_labels: int, *, rngs: nnx.Rngs) -> None:
        self.clip = CLIP(config, rngs=rngs)
        bias = nnx.initializers.constant(-2.5)  # few labels are present: sigmoid(-2.5) is 0.08
        width = config.vision_config.hidden_size
        self.head = nnx.Linear(width, num_labels, bias_init=bias, rngs=rngs) if num_labels else None


def clip_config(model: ConfigDict, tokenizer: Tokenizer) -> CLIPConfig:
    """The `transformers.CLIPConfig` of a recipe's `model`, for a tokenizer.

    Raises:
      InputError: it describes no CLIP.
    """
    import transformers

    content = model.to_dict()
    tokens = {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": tokenizer.token_to_id(START),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(END),
    }
    for name, more in (("vision_config", {}), ("text_config", tokens)):
        content[name] |= {"projection_dim": content["projection_dim"], **more}
    try:
        config: Any = transformers.CLIPConfig.from_dict(content)
    except Exception as error:  # transformers validates with exceptions of many kinds
        raise InputError(f"the recipe's model describes no CLIP: {' '.join(str(error).split())}") from error
    config.architectures = ["CLIPModel"]
    size, patch = config.vision_config.image_size, config.vision_config.patch_size
    if size % patch:
        raise InputError(f"images of {size} pixels cannot be cut into patches of {patch}")
    return config


def make_pretrain_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    loss_settings: ConfigDict,
    normalise: Callable,
    *,
    skip_nonfinite: bool = False,
) -> Step:
    """The step of one device, `step(state, frozen, batch, step, hyper) -> (state, metrics)`; see `step.py`.

    Args:
      graph: of `Pretraining`.
      optimizer: an `optax.GradientTransformation`.
      loss_settings: `max_scale`, of the cosines, and `auxiliary`, the weight of the label loss.
      normalise: uint8 pixels to what the image tower takes.
      skip_nonfinite: see `apply_gradients`.
    """

    def pretrain_step(state, frozen, batch, step, hyper):
        del frozen, step, hyper

        def loss(parameters):
            model = merge_module(graph, parameters)
            pooled = model.clip.image.pooled(normalise(batch["pixels"]))
            images, texts = model.clip.image.projection(pooled), model.clip.text(batch["token_ids"])[0]
            scale = jnp.exp(model.clip.logit_scale[...])
            contrastive, count = contrastive_sum(images, texts, scale)
            total, labelling = contrastive, jnp.zeros(())
            if model.head is not None:
                labelling, known = binary_cross_entropy.sum_and_count(model.head(pooled), batch["labels"])
                # A mean over labels beside a mean over pairs: both become sums over the same count.
                pairs, known = jax.lax.psum((count, known), AXIS)
                labelling = labelling * pairs / jnp.maximum(known, 1)
                total = total + loss_settings.auxiliary * labelling
            return total, (count, contrastive, labelling, scale)

        (total, (count, *parts, scale)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state["parameters"]
        )
        state, metrics = apply_gradients(
            optimizer, state, total, count, gradient, skip_nonfinite=skip_nonfinite
        )
        # Without a cap the temperature may vanish (Radford et al. 2021, section 2.5). The parameter itself is
        # held below it, so that what is saved is what was trained, and may come down again.
        clip = state["parameters"]["clip"]
        clip["logit_scale"] = jnp.minimum(clip["logit_scale"], math.log(loss_settings.max_scale))
        *parts, count = jax.lax.psum((*parts, count), AXIS)
        names = ("contrastive", "auxiliary")
        return state, metrics | {name: part / count for name, part in zip(names, parts)} | {"scale": scale}

    return pretrain_step


def make_single(step_function: Step) -> Step:
    """One step as a program of its own, with the arguments of `step.make_chunk`, each of length 1.

    A step of pre-training is long enough to be started alone, and on CPUs XLA takes twice as long for it
    inside a scan.
    """

    def single(state, frozen, data, indices, steps, hyper):
        batch = jax.tree.map(lambda array: array[indices[0]], data)
        return step_function(state, frozen, batch, steps[0], hyper)

    return single
