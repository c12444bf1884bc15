"""Token ids exactly as a checkpoint expects them."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from mlclip_jax.backbones.weights import read_json_object
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_text

START, END = "<|startoftext|>", "<|endoftext|>"  # of CLIP's texts
# CLIP's words: contractions, runs of letters, single digits, runs of other signs.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """A checkpoint's own `tokenizer.json`, truncated to the text tower's context; see `read_tokenizer`.

    Args:
      folder: holds `tokenizer.json`, or `vocab.json` and `merges.txt`.
      context_length: T, in tokens, start and end included.
      vocabulary_size: how many token ids the text tower knows.
      padding: the id to pad texts with; None for what `tokenizer_config.json` names, or the end token.
      clean: whether texts are repaired first, see `clean_text`.

    Raises:
      InputError: the file is missing, damaged, or has more tokens than the text tower.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        context_length: int,
        vocabulary_size: int,
        padding: int | None = None,
        clean: bool = False,
    ):
        path = Path(folder) / "tokenizer.json"
        try:
            self._tokenizer = read_tokenizer(folder)
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(context_length)
        except InputError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise InputError(f"cannot read {path}: {error}") from error
        size = self._tokenizer.get_vocab_size()
        if size > vocabulary_size:
            raise InputError(f"{path} has {size} tokens, and the config a vocabulary of {vocabulary_size}")
        self.padding = self._padding_of(folder) if padding is None else padding
        self.context_length = context_length
        self.clean = clean

    def __call__(self, texts: Sequence[str]) -> tuple[Int32[np.ndarray, "N T"], Int32[np.ndarray, " N"], int]:
        """Token ids, padded; how many each text has; and how many texts were cut to fit."""
        if self.clean:
            texts = list(map(clean_text, texts))
        encodings = self._tokenizer.encode_batch(texts)
        ids = np.full((len(texts), self.context_length), self.padding, np.int32)
        for row, encoding in zip(ids, encodings):
            row[: len(encoding.ids)] = encoding.ids
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int32)
        return ids, lengths, sum(bool(encoding.overflowing) for encoding in encodings)

    def count_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the context, and are cut to fit."""
        return self(texts)[2]

    @property
    def end_token(self) -> int | None:
        """The id that texts end with; None where they end with their own last token."""
        last = {tuple(self._tokenizer.encode(text).ids[-1:]) for text in ("a", "b c")}
        return next(iter(last))[0] if len(last) == 1 and () not in last else None

    def _padding_of(self, folder: str | os.PathLike) -> int:
        config_file = Path(folder) / "tokenizer_config.json"
        config = read_json_object(config_file) if config_file.is_file() else {}
        token = config.get("pad_token") or config.get("eos_token") or "<|endoftext|>"
        token = token.get("content") if isinstance(token, dict) else token
        padding = self._tokenizer.token_to_id(str(token))
        if padding is None:
            raise InputError(f"{folder}: tokenizer.json has no token {token!r}, which texts are padded with")
        return padding


def clean_text(text: str) -> str:
    """Text as openai/CLIP and open_clip repair it: broken Unicode, curly quotes, HTML entities, blanks."""
    from ftfy import fix_text

    return " ".join(html.unescape(html.unescape(fix_text(text))).split())


def read_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer:
    """The tokenizer of a checkpoint: its `tokenizer.json`, or made from a vocabulary and merges.

    The latter are byte-level BPE of CLIP's kind, whose words end in `</w>`, or of RoBERTa's.

    Raises:
      InputError: the files are missing, or no such tokenizer.
    """
    whole, words, pairs = (Path(folder) / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        return tokenizers.Tokenizer.from_file(str(whole))
    if not (words.is_file() and pairs.is_file()):
        raise InputError(
            f"{whole} is missing: a backbone's folder must hold it, or vocab.json and merges.txt, "
            "to encode texts"
        )
    vocabulary = read_json_object(words)
    if not all(isinstance(number, int) for number in vocabulary.values()):
        raise InputError(f"{words} must hold an object from tokens to their numbers")
    merges = []
    for line in read_text(pairs).split("\n"):
        first, _, second = line.strip().partition(" ")
        if second and not line.startswith("#version"):
            merges.append((first, second))
    is_clip = any(token.endswith("</w>") for token in vocabulary)
    missing = {START, END} - vocabulary.keys() if is_clip else {"<s>", "</s>"} - vocabulary.keys()
    if missing:
        raise InputError(
            f"{words} has no token {min(missing)!r}; it is neither of CLIP's kind nor of RoBERTa's"
        )
    try:
        return (clip_bpe if is_clip else _roberta_bpe)(vocabulary, merges)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InputError(f"{words} and {pairs} do not belong together: {error}") from error


def clip_bpe(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    """CLIP's tokenizer over a vocabulary, which has its start and end, and byte-pair merges."""
    model = models.BPE(vocabulary, list(merges), unk_token=END, end_of_word_suffix="</w>", fuse_unk=False)
    tokenizer = clip_words(model)
    _put_between(tokenizer, vocabulary, START, END, trim_offsets=False)
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def clip_words(model: models.BPE) -> tokenizers.Tokenizer:
    """A tokenizer of this model for lower-cased words, each as bytes."""
    tokenizer = tokenizers.Tokenizer(model)
    blanks = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), blanks, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _roberta_bpe(vocabulary, merges):
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _put_between(tokenizer, vocabulary, "<s>", "</s>", trim_offsets=True)
    tokenizer.add_special_tokens(
        [token for token in ("<s>", "<pad>", "</s>", "<unk>") if token in vocabulary]
    )
    if "<mask>" in vocabulary:
        tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    return tokenizer


def _put_between(tokenizer, vocabulary, start, end, trim_offsets):
    """Texts come between these tokens."""
    ends = (end, vocabulary[end]), (start, vocabulary[start])
    tokenizer.post_processor = processors.RobertaProcessing(
        *ends, trim_offsets=trim_offsets, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
