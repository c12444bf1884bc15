"""What open_clip calls its weights, and the repositories of the hub that hold them as safetensors.

As in open_clip's `pretrained.py`, of the models with towers that can be loaded here.
"""

from mlclip_jax.errors import InputError

# Model: its pretrained weights, and the repository of each.
_PRETRAINED = {
    "RN50": {tag: f"timm/resnet50_clip.{tag}" for tag in ("openai", "yfcc15m", "cc12m")},
    "RN101": {tag: f"timm/resnet101_clip.{tag}" for tag in ("openai", "yfcc15m")},
    "RN50x4": {"openai": "timm/resnet50x4_clip.openai"},
    "RN50x16": {"openai": "timm/resnet50x16_clip.openai"},
    "RN50x64": {"openai": "timm/resnet50x64_clip.openai"},
    "ViT-B-32": {
        **{
            tag: f"timm/vit_base_patch32_clip_224.{tag}"
            for tag in ("openai", "laion400m_e31", "laion400m_e32", "laion2b_e16", "metaclip_400m")
        },
        "metaclip_fullcc": "timm/vit_base_patch32_clip_224.metaclip_2pt5b",
        "laion2b_s34b_b79k": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "datacomp_xl_s13b_b90k": "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        "datacomp_m_s128m_b4k": "laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K",
        "datacomp_s_s13m_b4k": "laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K",
    },
    "ViT-B-32-256": {"datacomp_s34b_b86k": "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"},
    "ViT-B-16": {
        **{
            tag: f"timm/vit_base_patch16_clip_224.{tag}"
            for tag in ("openai", "laion400m_e31", "laion400m_e32", "metaclip_400m")
        },
        "metaclip_fullcc": "timm/vit_base_patch16_clip_224.metaclip_2pt5b",
        "laion2b_s34b_b88k": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        "datacomp_xl_s13b_b90k": "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
        "datacomp_l_s1b_b8k": "laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K",
        "dfn2b": "apple/DFN2B-CLIP-ViT-B-16",
    },
    "ViT-B-16-plus-240": {
        tag: f"timm/vit_base_patch16_plus_clip_240.{tag}" for tag in ("laion400m_e31", "laion400m_e32")
    },
    "ViT-L-14": {
        **{
            tag: f"timm/vit_large_patch14_clip_224.{tag}"
            for tag in ("openai", "laion400m_e31", "laion400m_e32", "metaclip_400m")
        },
        "metaclip_fullcc": "timm/vit_large_patch14_clip_224.metaclip_2pt5b",
        "laion2b_s32b_b82k": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        "datacomp_xl_s13b_b90k": "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        "commonpool_xl_s13b_b90k": "laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K",
        "dfn2b": "apple/DFN2B-CLIP-ViT-L-14",
    },
    "ViT-L-14-336": {"openai": "timm/vit_large_patch14_clip_336.openai"},
    "ViT-H-14": {
        "laion2b_s32b_b79k": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "metaclip_fullcc": "timm/vit_huge_patch14_clip_224.metaclip_2pt5b",
        "dfn5b": "apple/DFN5B-CLIP-ViT-H-14",
    },
    "ViT-g-14": {
        "laion2b_s12b_b42k": "laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
        "laion2b_s34b_b88k": "laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
    },
    "ViT-bigG-14": {
        "laion2b_s39b_b160k": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
        "metaclip_fullcc": "timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b",
    },
}


def repository_of(name: str) -> str:
    """The repository of "ViT-B-32/openai" or "ViT-B-32-quickgelu/openai"; any other name as it is.

    The activation is that of the weights, whichever of the two names them.

    Raises:
      InputError: there is such a model, and no such weights of it.
    """
    model, _, tag = name.partition("/")
    pretrained = _PRETRAINED.get(model.removesuffix("-quickgelu"))
    if not tag or pretrained is None:
        return name
    if tag not in pretrained:
        raise InputError(f"open_clip's {name} has no weights {tag!r}; it has {', '.join(pretrained)}")
    return pretrained[tag]
