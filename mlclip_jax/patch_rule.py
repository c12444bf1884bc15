"""Scores by patches as a method that recipes name; what it calls is `patches.score_patches`."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from mlclip_jax.data.datasets import open_images
from mlclip_jax.embeddings.store import PIXELS
from mlclip_jax.patches import Images, PatchSettings, name_vectors, score_patches
from mlclip_jax.ranges import BOOLEAN, Range
from mlclip_jax.texts.vocabulary import background_words
from mlclip_jax.zero_shot.prompts import Decided, LabelTexts, ScoresAtOnce, check_several


class ZeroShotPatches(ScoresAtOnce):
    """Zero-shot classification by the patches of images, which it reads themselves.

    Args:
      attention, background, refine, gaussian, global_weight, crops, short_side, scale, purified, temperature,
        patch_scale, global_scale, batch_size: see `patches.PatchSettings`.
      unlabelled: folder or dataset of images that teach the Gaussian classifier; empty: those to score.
    """

    TITLE = "Zero-shot by patches"
    USES = "names, and patches of the image"
    RANGES: ClassVar[dict[str, Range]] = {
        **PatchSettings.RANGES,
        **dict.fromkeys(("background", "refine", "gaussian"), BOOLEAN),
    }
    reads = (PIXELS,)

    def __init__(
        self,
        *,
        attention: str = PatchSettings.attention,
        background: bool = PatchSettings.background,
        refine: bool = PatchSettings.refine,
        gaussian: bool = PatchSettings.gaussian,
        global_weight: float = PatchSettings.global_weight,
        crops: int = PatchSettings.crops,
        short_side: int = PatchSettings.short_side,
        scale: float = PatchSettings.scale,
        purified: float = PatchSettings.purified,
        temperature: float = PatchSettings.temperature,
        patch_scale: float = PatchSettings.patch_scale,
        global_scale: float = PatchSettings.global_scale,
        batch_size: int = PatchSettings.batch_size,
        unlabelled: str = "",
    ) -> None:
        self.settings = PatchSettings(
            attention=attention,
            background=background,
            refine=refine,
            gaussian=gaussian,
            global_weight=global_weight,
            crops=crops,
            short_side=short_side,
            scale=scale,
            purified=purified,
            temperature=temperature,
            patch_scale=patch_scale,
            global_scale=global_scale,
            batch_size=batch_size,
        )
        self.unlabelled = open_images(unlabelled) if unlabelled else None

    def check(self, labels: LabelTexts) -> None:
        """See `ScoresAtOnce`; without words for the background, patches compare the labels alone."""
        if self.settings.gaussian or not self.settings.background:
            check_several(self.TITLE, len(labels.names))

    def known(self, labels: LabelTexts) -> Iterable[bytes]:
        """See `ScoresAtOnce`."""
        del labels
        return () if self.unlabelled is None else [str(name).encode() for name in self.unlabelled.names]

    @property
    def scores_alone(self) -> bool:
        """See `ScoresAtOnce`; without other images, those to score teach one another."""
        return not self.settings.gaussian or self.unlabelled is not None

    def decide(self, images: Mapping[str, Any], labels: LabelTexts) -> Decided:
        """See `methods`; the images are a `Source`, or what `patches.patch_scores` takes."""
        own: Images = images[PIXELS]
        if labels.load_backbone is None:
            raise ValueError("patches need what encodes them: LabelTexts.load_backbone")
        backbone, words = labels.load_backbone(), ()
        if self.settings.background:
            words = background_words(labels.names)
        scores = score_patches(
            backbone,
            own,
            labels.embeddings,
            name_vectors(backbone, words, "\n".join(labels.templates)) if words else None,
            self.settings,
            unlabelled=self.unlabelled,
        )
        return Decided(scores)
