"""Real photographs and embeddings, which are not part of this project; tests that need them skip without."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("MLCLIP_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
VOCABULARY = DATA / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
PHOTOGRAPHS = DATA / "coco_photos"
CLASS_EMBEDDINGS = DATA / "clip_vit_b32_class_text" / "coco80.npz"

needs_real_data = pytest.mark.skipif(
    not all(path.exists() for path in (VOCABULARY, PHOTOGRAPHS, CLASS_EMBEDDINGS)),
    reason=f"needs real photographs and embeddings in {DATA} (or where MLCLIP_TEST_DATA says)",
)
