"""MMM-CLIP's prompting methods with their settings, as methods that recipes name."""

from collections.abc import Mapping
from typing import Any, ClassVar

from mlclip_jax.errors import InputError
from mlclip_jax.ranges import AT_LEAST_0, BOOLEAN, POSITIVE, one_of
from mlclip_jax.zero_shot import list_all, llm_prompts, top_all, yes_no
from mlclip_jax.zero_shot.prompts import FORMS, Decided, Images, LabelTexts, ScoresAtOnce
from mlclip_jax.zero_shot.published import (
    list_all_as_published,
    top_all_as_published,
    yes_no_as_published,
)

BY_TEXTS = "prompts"  # what all of them use, beside one image


class YesNo(ScoresAtOnce):
    """Each class alone, between two prompts; see `yes_no.yes_no`.

    Args:
      absent: which prompt says that a class is not there, a key of `yes_no.ABSENT`.
      published: whether as MMM-CLIP's code has it, see `published`; `absent` is then not read.
      logit_scale: of the backbone; 100 in CLIP.
    """

    TITLE = yes_no.TITLE
    USES = BY_TEXTS
    RANGES: ClassVar = {"absent": one_of(yes_no.ABSENT), "published": BOOLEAN, "logit_scale": POSITIVE}

    def __init__(
        self, *, absent: str = "nothing", published: bool = False, logit_scale: float = 100.0
    ) -> None:
        self.absent, self.published, self.logit_scale = absent, published, logit_scale

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        given = (images["image"], labels.encode, labels.names)
        if self.published:
            return yes_no_as_published(*given, logit_scale=self.logit_scale)
        return yes_no.yes_no(*given, absent=self.absent, logit_scale=self.logit_scale)


class ListAll(ScoresAtOnce):
    """All combinations of the classes are prompts; see `list_all.list_all`.

    Args:
      form: how a combination is written, a key of `prompts.FORMS`.
      published: whether as MMM-CLIP's code has it, see `published`; `form` is then not read.
      logit_scale: of the backbone; 100 in CLIP.
    """

    TITLE = list_all.TITLE
    USES = BY_TEXTS
    RANGES: ClassVar = {"form": one_of(FORMS), "published": BOOLEAN, "logit_scale": POSITIVE}

    def __init__(self, *, form: str = "names", published: bool = False, logit_scale: float = 100.0) -> None:
        self.form, self.published, self.logit_scale = form, published, logit_scale

    def check(self, labels: LabelTexts) -> None:
        """See `ScoresAtOnce`."""
        list_all.check_number(len(labels.names))

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        given = (images["image"], labels.encode, labels.names)
        how: dict[str, Any] = {"logit_scale": self.logit_scale, "count_cut": labels.count_cut}
        if self.published:
            return list_all_as_published(*given, **how)
        return list_all.list_all(*given, write=FORMS[self.form], **how)


class TopAll(ScoresAtOnce):
    """Classes are ranked, and an image has the first few; see `top_all.top_all`.

    Args:
      form: how a combination is written, a key of `prompts.FORMS`.
      deepest: how many classes a combination has at most; 0: as many as fit the text
        encoder's context.
      published: whether as MMM-CLIP's code has it, see `published`; the settings above are then not read.
      logit_scale: of the backbone; 100 in CLIP.
    """

    TITLE = top_all.TITLE
    USES = BY_TEXTS
    RANGES: ClassVar = {
        "form": one_of(FORMS),
        "deepest": AT_LEAST_0,
        "published": BOOLEAN,
        "logit_scale": POSITIVE,
    }

    def __init__(
        self,
        *,
        form: str = "names",
        deepest: int = 0,
        published: bool = False,
        logit_scale: float = 100.0,
    ) -> None:
        self.form, self.deepest, self.published = form, deepest, published
        self.logit_scale = logit_scale

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        given = (images["image"], labels.encode, labels.names)
        how: dict[str, Any] = {"logit_scale": self.logit_scale, "count_cut": labels.count_cut}
        if self.published:
            return top_all_as_published(*given, **how)
        return top_all.top_all(*given, write=FORMS[self.form], deepest=self.deepest, **how)


class LanguageModelTopAll(ScoresAtOnce):
    """Top-all, whose prompts a language model writes; see `llm_prompts.caption_writer`.

    Args:
      answers: file of its captions, made if it is missing.
      model, address: of the language model; empty: all captions are in the file.
      deepest: how many classes a combination has at most; 0: all.
      published: whether classes are decoded by their names in the captions.
      logit_scale: of the backbone; 100 in CLIP.

    Raises:
      InputError: no file is named.
    """

    TITLE = llm_prompts.TITLE
    USES = "prompts of a language model"
    RANGES: ClassVar = {"deepest": AT_LEAST_0, "published": BOOLEAN, "logit_scale": POSITIVE}

    def __init__(
        self,
        *,
        answers: str = "",
        model: str = "",
        address: str = "",
        deepest: int = 0,
        published: bool = False,
        logit_scale: float = 100.0,
    ) -> None:
        if not answers:
            raise InputError(
                f"{self.TITLE}: no file of captions is named; give answers=FILE, and where it lacks some, "
                "model= and address= of a language model"
            )
        self.write = llm_prompts.caption_writer(answers, model=model, address=address)
        self.deepest, self.published, self.logit_scale = deepest, published, logit_scale

    def decide(self, images: Mapping[str, Images], labels: LabelTexts) -> Decided:
        """See `methods`."""
        given = (images["image"], labels.encode, labels.names)
        how: dict[str, Any] = {
            "write_class": self.write,
            "write": self.write,
            "logit_scale": self.logit_scale,
            "count_cut": labels.count_cut,
        }
        if self.published:
            return top_all_as_published(*given, **how)
        return top_all.top_all(*given, deepest=self.deepest or None, **how)
