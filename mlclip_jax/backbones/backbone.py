"""A frozen encoder with its own preprocessing, and the batches in which it encodes."""

import functools
import operator
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int, Int32, UInt8

from mlclip_jax.backbones.batching import as_list, padded_batches, run_ahead
from mlclip_jax.backbones.layouts import Layout
from mlclip_jax.backbones.processing import ImageLike
from mlclip_jax.backbones.tokenizer import Tokenizer
from mlclip_jax.backbones.weights import Parameters
from mlclip_jax.distributed.sharding import make_mesh, replicated, split_rows, split_widest
from mlclip_jax.errors import InputError
from mlclip_jax.nnx_boundary import merge_module
from mlclip_jax.progress import progress_bar
from mlclip_jax.provenance import Origin

# What is said of a backbone that lacks a way in.
MISSING = {"text": "has no text tower", "pair": "does not encode an image and a text together; BLIP does"}
SHORTEST_TEXT = 16  # tokens; shorter ones are padded to this, so that few lengths are compiled


class Encoded(NamedTuple):
    """Embeddings, and the local features that belong to them.

    Attributes:
      embeddings: un-normalised.
      local: un-normalised, `width` being the backbone's `local_width`: an image's patches or places in row
        order, a text's tokens.
      mask: which of them there are; what the others hold is zero.
    """

    embeddings: Float32[np.ndarray, "N D"]
    local: Float32[np.ndarray, "N T width"]
    mask: Bool[np.ndarray, "N T"]


class Backbone:
    """A frozen encoder with its own preprocessing. Made by `load_backbone`.

    For steps of your own there are the pure functions beneath: `image(parameters, pixels)`,
    `text(parameters, token_ids)` and, of BLIP, `pair(parameters, pixels, token_ids)`. They take what `pixels`
    and `token_ids` make; under `jax.jit`, what is not used of their results is not computed. `text` in two
    halves, between which a learnt context may take the place of token embeddings, is
    `embed_tokens(parameters, token_ids)` and `encode_tokens(parameters, token_embeddings, ends(token_ids))`.

    Attributes:
      title: the architecture in words.
      embedding_width: D, of the joint space.
      local_width: of local features; D but for VGG-16.
      pair_width: of what BLIP makes of a pair; None of others.
      image_size: (height, width) of the pixels that its image tower sees.
      resize: "crop", "squash" or "squash and crop", how images come to that size.
      interpolation: "bicubic" or "bilinear", where it was chosen; else "".
      decode: "full" or "reduced", the scale at which JPEG files are decoded.
      stride: pixels between two neighbours among an image's local features.
      grid_size: (rows, columns) of these.
      context_length: the most tokens of a text, start and end included; None where there is no text tower.
      dtype: of the products, "float32" or "bfloat16".
      position_embeddings: which features of an image get them, where that can be chosen; else None.
      origin: an `Origin`, whose name, revision and hash identify the weights.
      image_origin: the same with how images are seen and computed: of an image's embedding.
      parameters: nested dict of the weights, on the devices.
      compiled: the programs that were compiled for it, by what they compute.
      image_processor: the `ImageProcessor`.
      tokenizer: the `Tokenizer`; None where there is no text tower.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        parameters: Parameters,
        layout: Layout,
        *,
        dtype: str,
        origin: Origin,
        interpolation: str = "",
        shard_parameters: bool = False,
    ):
        self._mesh = make_mesh(jax.local_devices())
        self.image_processor = layout.image_processor
        self.tokenizer = layout.tokenizer
        self.title = layout.title
        self.embedding_width = layout.embedding_width
        self.local_width = layout.local_width or layout.embedding_width
        self.pair_width = layout.pair_width
        self.image_size = layout.image_processor.output_size
        self.resize = layout.image_processor.resize
        self.decode = layout.image_processor.decode
        self.stride = layout.stride
        self.grid_size = tuple(side // self.stride for side in self.image_size)
        self.context_length = layout.tokenizer.context_length if layout.tokenizer else None
        self.dtype, self.position_embeddings = dtype, layout.position_embeddings
        self.interpolation = interpolation
        smoothed = layout.antialias and self.image_size != (layout.image_size,) * 2
        self._antialias = "yes" if smoothed else ""
        self.origin = origin.replace(clean="yes" if layout.clean else "")
        places = replicated(self._mesh)
        if shard_parameters:
            places = jax.tree.map(functools.partial(split_widest, self._mesh), parameters)
        self.parameters = jax.device_put(parameters, places)
        self._graph = graph
        self.compiled = {}

    @property
    def image_origin(self) -> Origin:
        return self.origin.replace(
            image_size=self.image_size,
            resize=self.resize,
            decode=self.decode,
            dtype=self.dtype,
            position_embeddings=self.position_embeddings or "",
            interpolation=self.interpolation,
            antialias=self._antialias,
        )

    def __repr__(self) -> str:
        number = sum(array.size for array in jax.tree.leaves(self.parameters))
        number = f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
        height, width = self.image_size
        return (
            f"{self.origin.name}: {self.title}, {number} parameters, {self.dtype}, "
            f"images of {height} x {width} ({self.resize}), SHA-256 {self.origin.sha256[:12]}"
        )

    def module(self, parameters: Parameters) -> Any:
        """The `nnx.Module` with these parameters, for what is beneath the functions below; see `dense.py`."""
        return merge_module(self._graph, parameters)

    def image(
        self, parameters: Parameters, pixels: UInt8[Array | np.ndarray, "B H W 3"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T width"]]:
        """Images' pixels to embeddings and local features."""
        return self._call("image", parameters, self.image_processor.normalise(pixels))

    def text(
        self, parameters: Parameters, token_ids: Int[Array | np.ndarray, "B T"]
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """Texts' token ids to embeddings and local features."""
        return self._call("text", parameters, token_ids)

    def embed_tokens(
        self, parameters: Parameters, token_ids: Int[Array | np.ndarray, "B T"]
    ) -> Float32[Array, "B T width"]:
        """Token ids to token embeddings, before positions are added."""
        return self._call("text.embed", parameters, token_ids)

    def ends(self, token_ids: Int[Array | np.ndarray, "B T"]) -> Int32[Array, " B"]:
        """Where each text ends: the index of its end token, for BLIP of its last token."""
        return self._call("text.ends", self.parameters, token_ids)

    def encode_tokens(
        self,
        parameters: Parameters,
        token_embeddings: Float32[Array | np.ndarray, "B T width"],
        end: Int[Array | np.ndarray, " B"],
    ) -> tuple[Float32[Array, "B D"], Float32[Array, "B T D"]]:
        """What `text` gives, of token embeddings; differentiable with respect to them.

        Args:
          parameters: of this backbone.
          token_embeddings: from `embed_tokens`, some of them perhaps replaced by learnt ones.
          end: from `ends`; what lies behind it changes nothing before it.

        Raises:
          InputError: the texts are longer than the context, or there is no text tower.
        """
        if self.context_length is not None and token_embeddings.shape[1] > self.context_length:
            raise InputError(
                f"texts of {token_embeddings.shape[1]} tokens do not fit {self.origin.name}, whose "
                f"context is {self.context_length} tokens; shorten them, or the learnt context"
            )
        return self._call("text.encode", parameters, token_embeddings, end)

    def pair(
        self,
        parameters: Parameters,
        pixels: UInt8[Array | np.ndarray, "B H W 3"],
        token_ids: Int[Array | np.ndarray, "B T"],
    ) -> tuple[Float32[Array, "B width"], Float32[Array, "B 2"]]:
        """BLIP's text tower at an image: its first token, and logits of no match and match."""
        return self._call("pair", parameters, self.image_processor.normalise(pixels), token_ids)

    def pixels(self, images: Iterable[ImageLike]) -> UInt8[np.ndarray, "N H W 3"]:
        """Images as the image tower sees them; see `ImageProcessor.pixels`."""
        with ThreadPoolExecutor() as pool:  # decoding and resizing release the interpreter lock
            return np.stack(list(pool.map(self.image_processor.pixels, images)))

    def token_ids(self, texts: Sequence[str]) -> Int32[np.ndarray, "N T"]:
        """Texts as token ids, padded to the context; longer ones are cut, with a warning."""
        return self._tokenise(texts)[0]

    @overload
    def encode_images(
        self, images: Iterable[ImageLike], *, local: Literal[False] = False, batch_size: int = 32
    ) -> Float32[np.ndarray, "N D"]: ...

    @overload
    def encode_images(
        self, images: Iterable[ImageLike], *, local: Literal[True], batch_size: int = 32
    ) -> Encoded: ...

    def encode_images(
        self, images: Iterable[ImageLike], *, local: bool = False, batch_size: int = 32
    ) -> Float32[np.ndarray, "N D"] | Encoded:
        """Embeds images.

        Args:
          images: N paths, `PIL.Image`s or uint8 arrays (H, W, 3).
          local: whether to return local features too.
          batch_size: how many are encoded at once, over all devices.

        Returns:
          Un-normalised embeddings; or, with `local`, an `Encoded`.

        Raises:
          InputError: an image cannot be read; it is named.
        """
        images = as_list(images, "images")
        width = self.grid_size[0] * self.grid_size[1]
        encoded = self._empty(len(images), width, local)
        for rows, outputs in self._encode(
            "image", len(images), lambda rows: (self.pixels(images[rows]),), local, batch_size
        ):
            for array, output in zip(encoded, outputs):
                array[rows] = output
        self._check_finite(encoded[0], images, "images")
        return Encoded(*encoded, np.ones((len(images), width), bool)) if local else encoded[0]

    def encode_pixels(
        self, batches: Iterable[tuple[Any, UInt8[np.ndarray, "B H W 3"]]], *, local: bool = False
    ) -> Iterator[tuple[Any, list[np.ndarray]]]:
        """Embeds a stream of batches: while one is computed, the next is waited for.

        Args:
          batches: pairs of anything and pixels, as `pixels` makes them; B is the same in all, and a multiple
            of the number of local devices.
          local: whether to compute local features too.

        Yields:
          Pairs of that thing and the outputs, float32: embeddings (B, D) and, with `local`, local features
          (B, T, width).
        """
        yield from self._run("image", ((thing, (pixels,)) for thing, pixels in batches), local)

    @overload
    def encode_texts(
        self, texts: Iterable[str], *, local: Literal[False] = False, batch_size: int = 64
    ) -> Float32[np.ndarray, "N D"]: ...

    @overload
    def encode_texts(
        self, texts: Iterable[str], *, local: Literal[True], batch_size: int = 64
    ) -> Encoded: ...

    def encode_texts(
        self, texts: Iterable[str], *, local: bool = False, batch_size: int = 64
    ) -> Float32[np.ndarray, "N D"] | Encoded:
        """Embeds texts.

        Args:
          texts: N of them. Those longer than the context are cut, and counted in a warning.
          local: whether to return local features too: of all tokens, start and end included.
          batch_size: how many are encoded at once, over all devices.

        Returns:
          Un-normalised embeddings; or, with `local`, an `Encoded` as wide as the longest text.

        Raises:
          InputError: a text is no string, or there is no text tower.
        """
        texts = as_list(texts, "texts")
        ids, lengths = self._tokenise(texts)
        width = int(lengths.max(initial=0))
        encoded = self._empty(len(texts), width, local)
        # Texts of like length share a batch, which is no longer than they are.
        order = np.argsort(lengths, kind="stable")

        def prepare(rows):
            return (ids[order[rows], : self._padded_length(int(lengths[order[rows]].max()))],)

        for rows, outputs in self._encode("text", len(texts), prepare, local, batch_size):
            encoded[0][order[rows]] = outputs[0]
            for row, tokens in zip(order[rows], outputs[1] if local else ()):
                encoded[1][row, : lengths[row]] = tokens[: lengths[row]]
        self._check_finite(encoded[0], texts, "texts")
        return Encoded(*encoded, np.arange(width)[None] < lengths[:, None]) if local else encoded[0]

    def encode_pairs(
        self, images: Iterable[ImageLike], texts: Iterable[str], *, batch_size: int = 16
    ) -> tuple[Float32[np.ndarray, "N width"], Float32[np.ndarray, "N 2"]]:
        """What BLIP makes of each text while it attends to the image beside it.

        Args:
          images: N, as for `encode_images`.
          texts: N.
          batch_size: how many pairs are encoded at once, over all devices.

        Returns:
          Multimodal features, `pair_width` wide, and the matching head's logits of "no match" and "match".

        Raises:
          InputError: there are not as many texts as images, or the backbone does not encode both together.
        """
        images, texts = as_list(images, "images"), as_list(texts, "texts")
        if len(images) != len(texts):
            raise InputError(f"pairs need as many texts as images; got {len(texts)} and {len(images)}")
        if self.pair_width is None:
            raise self._lacks("pair")
        ids, lengths = self._tokenise(texts)
        length = self._padded_length(int(lengths.max(initial=1)))

        def prepare(rows):
            return self.pixels(images[rows]), ids[rows, :length]

        features = np.zeros((len(images), self.pair_width), np.float32)
        logits = np.zeros((len(images), 2), np.float32)
        for rows, outputs in self._encode("pair", len(images), prepare, True, batch_size):
            features[rows], logits[rows] = outputs
        self._check_finite(features, list(zip(images, texts)), "pairs")
        return features, logits

    def _call(self, name: str, parameters: Parameters, *inputs: Array | np.ndarray) -> Any:
        module = self.module(parameters)
        way_in = name.split(".")[0]  # of "text.encode", "text"
        if not hasattr(module, way_in):
            raise self._lacks(way_in)
        # Accelerators would otherwise round the factors of a float32 product; bfloat16 ones are as they are.
        with jax.default_matmul_precision("highest"):
            return operator.attrgetter(name)(module)(*map(jnp.asarray, inputs))

    def _lacks(self, name: str) -> InputError:
        return InputError(f"{self.origin.name} ({self.title}) {MISSING[name]}")

    def _compile(self, name: str, local: bool) -> Callable[..., Any]:
        if (name, local) not in self.compiled:

            def encode(parameters, *inputs):
                outputs = getattr(self, name)(parameters, *inputs)
                return outputs if local else outputs[:1]

            self.compiled[name, local] = jax.jit(encode, out_shardings=split_rows(self._mesh))
        return self.compiled[name, local]

    def _encode(
        self,
        name: str,
        number: int,
        prepare: Callable[[slice], Sequence[np.ndarray]],
        local: bool,
        batch_size: int,
    ) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Encodes `number` inputs, which `prepare` makes of a slice of rows, in batches.

        Yields the rows of each batch and its outputs on the host: `local` ones too, or the embeddings alone.
        """
        if batch_size < 1:
            raise InputError(f"invalid batch_size {batch_size}: must be at least 1")
        if not number:
            return
        batches = padded_batches(number, batch_size, self._mesh.size, prepare)
        with progress_bar(number, f"encoding {name}s", f"{name}s") as bar:
            for rows, outputs in self._run(name, batches, local):
                bar.update(rows.stop - rows.start)
                yield rows, [output[: rows.stop - rows.start] for output in outputs]

    def _run(
        self, name: str, batches: Iterable[tuple[Any, Sequence[np.ndarray]]], local: bool
    ) -> Iterator[tuple[Any, list[np.ndarray]]]:
        encode = functools.partial(self._compile(name, local), self.parameters)
        return run_ahead(encode, self._mesh, batches)

    def _empty(self, number: int, width: int, local: bool) -> list[np.ndarray]:
        arrays = [np.zeros((number, self.embedding_width), np.float32)]
        if local:
            arrays.append(np.zeros((number, width, self.local_width), np.float32))
        return arrays

    def _text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise self._lacks("text")
        return self.tokenizer

    def _tokenise(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokenise = self._text_tokenizer()
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"a text must be a string; got {text!r:.60}")
        try:
            ids, lengths, truncated = tokenise(texts)
        except TypeError as error:  # half a surrogate pair, which is no character
            raise InputError(f"a text cannot be encoded as UTF-8: {error}") from error
        if truncated:
            warnings.warn(
                f"{truncated} of {len(texts)} texts were cut to {self.context_length} tokens", stacklevel=3
            )
        return ids, lengths

    def _padded_length(self, length: int) -> int:
        longest = self._text_tokenizer().context_length
        return min(longest, max(SHORTEST_TEXT, 1 << (length - 1).bit_length()))

    def _check_finite(self, embeddings: np.ndarray, inputs: Sequence[Any], unit: str) -> None:
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(bad):
            raise InputError(
                f"{self.origin.name} gives NaN or infinity for {len(bad)} of {len(inputs)} {unit}, "
                f"the first {reprlib.repr(inputs[bad[0]])}; its weights or that input are damaged"
            )
