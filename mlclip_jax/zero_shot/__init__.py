"""Scores that need no training: rules, what aggregates templates, and scores of parts of an image."""

from mlclip_jax.zero_shot.aggregation import (
    AGGREGATIONS,
    highest_scores,
    mean_embeddings,
    mean_ranks,
    mean_scores,
    score_by_templates,
)
from mlclip_jax.zero_shot.compound import compound_prompts, fuse_compounds, weakened_maximum
from mlclip_jax.zero_shot.distillation import SMALLEST_BANK, self_distilled_scores
from mlclip_jax.zero_shot.gaussian import add_patches, empty_bank, fit_gaussians, gaussian_probabilities
from mlclip_jax.zero_shot.local import crop_scores, local_scores, merged_scores
from mlclip_jax.zero_shot.patches import attention_affinity, merged, patch_probabilities, pooled, refined
from mlclip_jax.zero_shot.rules import (
    centred,
    cosine_scores,
    in_blocks,
    l2_normalize,
    log_softmax_scores,
    mean_direction,
    modality_gap,
    ridge_map,
    ridge_scores,
    standardise,
)

__all__ = [
    "AGGREGATIONS",
    "SMALLEST_BANK",
    "add_patches",
    "attention_affinity",
    "centred",
    "compound_prompts",
    "cosine_scores",
    "crop_scores",
    "empty_bank",
    "fit_gaussians",
    "fuse_compounds",
    "gaussian_probabilities",
    "highest_scores",
    "in_blocks",
    "l2_normalize",
    "local_scores",
    "log_softmax_scores",
    "mean_direction",
    "mean_embeddings",
    "mean_ranks",
    "mean_scores",
    "merged",
    "merged_scores",
    "modality_gap",
    "patch_probabilities",
    "pooled",
    "refined",
    "ridge_map",
    "ridge_scores",
    "score_by_templates",
    "self_distilled_scores",
    "standardise",
    "weakened_maximum",
]
