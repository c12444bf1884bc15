"""The published architectures in torch that no library at hand has, with the names their checkpoints have.

CLIP as OpenAI and open_clip store it, torchvision's ResNet and VGG-16 as timm stores them. Each gives
(embedding, local features) as `Backbone` does.
"""

from collections import OrderedDict

import torch
from torch import nn


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualBlock(nn.Module):
    def __init__(self, width, heads, mlp_ratio, activation):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        inner = int(width * mlp_ratio)
        layers = [
            ("c_fc", nn.Linear(width, inner)),
            ("act", activation()),
            ("c_proj", nn.Linear(inner, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads, mlp_ratio, activation):
        super().__init__()
        blocks = [ResidualBlock(width, heads, mlp_ratio, activation) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


def resized(positions, height, width, antialias=False):
    """Position embeddings (1 + side², d) for another grid; open_clip smooths those of its ViTs."""
    side = int((len(positions) - 1) ** 0.5)
    grid = positions[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(
        grid, size=(height, width), mode="bicubic", align_corners=False, antialias=antialias
    )
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(height * width, -1)])


class VisionTransformer(nn.Module):
    def __init__(self, settings, output, activation):
        super().__init__()
        width, patch = settings["width"], settings["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        side = settings["image_size"] // patch
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        heads = width // settings["head_width"]
        self.transformer = Transformer(width, settings["layers"], heads, settings["mlp_ratio"], activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.randn(width, output))

    def forward(self, pixels):
        grid = self.conv1(pixels)
        same = grid.shape[2] * grid.shape[3] == len(self.positional_embedding) - 1  # and a square
        positions = self.positional_embedding
        if not (same and grid.shape[2] == grid.shape[3]):
            positions = resized(positions, *grid.shape[2:], antialias=True)
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), tokens], dim=1) + positions
        tokens = self.ln_post(self.transformer(self.ln_pre(tokens))) @ self.proj
        return tokens[:, 0], tokens[:, 1:]


class Bottleneck(nn.Module):
    def __init__(self, width_in, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if stride > 1 or width_in != 4 * planes:
            layers = [
                ("-1", nn.AvgPool2d(stride)),
                ("0", nn.Conv2d(width_in, 4 * planes, 1, bias=False)),
                ("1", nn.BatchNorm2d(4 * planes)),
            ]
            self.downsample = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.pool(out)))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    def __init__(self, side, width, heads, output):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) / width**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, output)
        self.heads = heads

    def forward(self, grid, positions):
        tokens = grid.flatten(2).permute(2, 0, 1)
        tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens])
        if positions:
            tokens = tokens + resized(self.positional_embedding, *grid.shape[2:])[:, None]
        pooled, _ = nn.functional.multi_head_attention_forward(
            query=tokens[:1],
            key=tokens,
            value=tokens,
            embed_dim_to_check=tokens.shape[-1],
            num_heads=self.heads,
            q_proj_weight=self.q_proj.weight,
            k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
            in_proj_weight=None,
            in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=self.c_proj.weight,
            out_proj_bias=self.c_proj.bias,
            use_separate_proj_weight=True,
            training=False,
            need_weights=False,
        )
        return pooled[0], self.c_proj(self.v_proj(tokens[1:])).transpose(0, 1)


class ModifiedResNet(nn.Module):
    def __init__(self, settings, output, positions):
        super().__init__()
        width = settings["width"]
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2)
        width_in = width
        for stage, depth in enumerate(settings["layers"]):
            blocks = []
            for i in range(depth):
                blocks.append(Bottleneck(width_in, width * 2**stage, 2 if stage and not i else 1))
                width_in = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        heads = width * 32 // settings["head_width"]
        self.attnpool = AttentionPool(settings["image_size"] // 32, width * 32, heads, output)
        self.positions = positions

    def forward(self, pixels):
        x = pixels
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.pool(x)))))
        embedding = self.attnpool(x, positions=self.positions != "none")[0]
        return embedding, self.attnpool(x, positions=self.positions == "all")[1]


class OpenClip(nn.Module):
    """CLIP by the `model_cfg` of an open_clip config."""

    def __init__(self, config, *, quick_gelu, positions="pooled"):
        super().__init__()
        image = {"head_width": 64, "mlp_ratio": 4.0} | config["vision_cfg"]
        text = {"mlp_ratio": 4.0} | config["text_cfg"]
        activation = QuickGELU if quick_gelu else nn.GELU
        output, width = config["embed_dim"], text["width"]
        if isinstance(image["layers"], list):
            self.visual = ModifiedResNet(image, output, positions)
        else:
            self.visual = VisionTransformer(image, output, activation)
        self.transformer = Transformer(width, text["layers"], text["heads"], text["mlp_ratio"], activation)
        self.token_embedding = nn.Embedding(text["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.randn(text["context_length"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, output))
        self.logit_scale = nn.Parameter(torch.randn(()))

    def image(self, pixels):
        return self.visual(pixels)

    def text(self, ids):
        tokens = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
        tokens = self.ln_final(self.transformer(tokens, mask)) @ self.text_projection
        return tokens[torch.arange(len(ids)), ids.argmax(dim=1)], tokens


class ImageNetBlock(nn.Module):
    def __init__(self, width_in, width, stride):
        super().__init__()
        inner = width // 4
        self.conv1, self.bn1 = nn.Conv2d(width_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or width_in != width:
            shortcut = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet, with its classifier."""

    def __init__(self, depths=(3, 4, 23, 3), widths=(64, 256, 512, 1024, 2048), classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        width_in = widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths[1:])):
            blocks = []
            for i in range(depth):
                blocks.append(ImageNetBlock(width_in, width, 2 if stage and not i else 1))
                width_in = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width_in, classes)

    def image(self, pixels):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(pixels))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3)), x.flatten(2).transpose(1, 2)


class VGG16(nn.Module):
    """VGG-16 with timm's names: the first two layers behind the grid are convolutions."""

    def __init__(self, classes=10):
        super().__init__()
        layers, width_in = [], 3
        for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(depth):
                layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.ReLU()]
                width_in = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pre_logits = nn.Module()
        self.pre_logits.fc1, self.pre_logits.fc2 = nn.Conv2d(512, 4096, 7), nn.Conv2d(4096, 4096, 1)
        self.head = nn.Module()
        self.head.fc = nn.Linear(4096, classes)

    def image(self, pixels):
        grid = self.features(pixels)
        x = nn.functional.adaptive_avg_pool2d(grid, 7)  # as torchvision does it, at any size
        x = torch.relu(self.pre_logits.fc2(torch.relu(self.pre_logits.fc1(x))))
        return x.flatten(1), grid.flatten(2).transpose(1, 2)
