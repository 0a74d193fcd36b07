"""The Vision Transformer, from scratch: read it from top to bottom to learn how attention works on images.

Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929; attention and the
transformer: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.  The architecture (a pre-norm encoder) and
its default sizes are those of torchvision's `vit_b_16`, whose published weights can be loaded (see
`vit.model.weight_names`).

Shapes: B images, N tokens, D width, H heads, d = D / H features per head, P patch side in pixels, C classes.

    images (B, 3, 224, 224)
      -> patches (B, 196, 768)          cut into 14 x 14 squares of 16 x 16 pixels; each becomes a vector, a "word"
      -> tokens (B, 197, 768)           class token prepended, position embedding added to each token
      -> 12 x block                     attention mixes information across tokens; the MLP acts on each token alone
      -> logits (B, 1000)               computed from the class token
"""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit.config.sections import ModelConfig


class PatchEmbedding(nn.Module):
    """Maps each square patch linearly to a token: (B, 3, S, S) -> (B, (S / P)², D).

    Why patches: attention compares every token with every other, so its cost grows as N².  An image of 224 x 224 pixels
    has 50,176 pixels, but only 196 patches of 16 x 16.  All patches share the same map.  It is equivalent to a
    convolution with kernel size and stride P, written here as a single matrix product.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(3 * patch_size * patch_size, width)

    def forward(self, images: Tensor) -> Tensor:
        B, _, S, _ = images.shape
        P, side = self.patch_size, S // self.patch_size
        patches = images.view(B, 3, side, P, side, P).permute(0, 2, 4, 1, 3, 5)  # (B, side, side, 3, P, P)
        return self.proj(patches.reshape(B, side * side, 3 * P * P))  # (B, N, D)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """softmax(QKᵀ / √d) V, for all images and heads at once: 3 x (B, H, N, d) -> (B, H, N, d).

    Each token has a query (a row of Q: what it looks for), a key (a row of K: what it offers) and a value (a row of V:
    the content it passes on).  The dot product of a query and a key is a score: how relevant one token is to another.
    Softmax turns the scores of each query into attention weights that sum to 1; the output for a token is the average
    of all values, weighted by them.  Without the division by √d the scores would grow with √d, softmax would saturate
    and its gradient would vanish.  Vaswani et al. 2017, section 3.2.1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, N, N)
    return F.dropout(scores.softmax(dim=-1), dropout) @ v


class MultiHeadAttention(nn.Module):
    """Attention in H subspaces in parallel, followed by a linear map: (B, N, D) -> (B, N, D).

    A single head has one set of attention weights per token; several heads let a token attend to several places for
    different reasons.  The queries, keys and values of a head have d = D / H features, computed from all D features of
    a token, so that all heads together cost as much as one head with D features.
    """

    def __init__(self, width: int, heads: int, dropout: float, fused: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.fused = fused  # False: use `attention` above; for reading, and for testing the fused kernel
        self.qkv = nn.Linear(width, 3 * width)  # Q, K and V of all heads in one matrix product
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, N, D = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # 3 x (B, H, N, d)
        dropout = self.dropout if self.training else 0.0
        if self.fused:
            # The same formula in one kernel, which does not write the N x N scores to memory: FlashAttention, Dao et
            # al. 2022, https://arxiv.org/abs/2205.14135.
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            y = attention(q, k, v, dropout)
        return self.out(y.transpose(1, 2).reshape(B, N, D))  # heads concatenated: (B, N, D)


class MLP(nn.Module):
    """Two linear layers with a GELU in between, applied to each token separately: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.dropout(F.gelu(self.up(x)))))


class DropPath(nn.Module):
    """Randomly skips a residual branch for whole images during training, and scales up the others to keep the mean.

    Also known as stochastic depth: Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """

    keep: Tensor

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.drops = probability > 0
        # A tensor, not a Python number, so that blocks with different rates share one compiled graph.
        self.register_buffer("keep", torch.tensor(1.0 - probability), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drops):
            return x
        kept = torch.rand(x.shape[0], 1, 1, device=x.device) < self.keep  # (B, 1, 1): one draw per image
        return x * (kept / self.keep).to(x.dtype)


class LayerScale(nn.Module):
    """A learned factor per feature with a small initial value: (B, N, D) -> (B, N, D).

    With it a deep model starts close to the identity function: Touvron et al. 2021, https://arxiv.org/abs/2103.17239.
    """

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Attention, then MLP, each with a residual connection: (B, N, D) -> (B, N, D).

    LayerNorm is applied to the input of each branch ("pre-norm"), not after the sum as in Vaswani et al.  The residual
    stream then passes from the first layer to the last unchanged, and so do its gradients, so that deep models train
    stably (Xiong et al. 2020, https://arxiv.org/abs/2002.04745).
    """

    def __init__(self, cfg: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.attention = MultiHeadAttention(cfg.width, cfg.heads, cfg.attention_dropout)
        self.dropout = nn.Dropout(cfg.dropout)
        self.norm2 = nn.LayerNorm(cfg.width, eps=1e-6)
        self.mlp = MLP(cfg.width, cfg.mlp_dim, cfg.dropout)
        self.drop_path = DropPath(drop_path)
        self.scale1, self.scale2 = (
            LayerScale(cfg.width, cfg.layer_scale) if cfg.layer_scale else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1(self.dropout(self.attention(self.norm1(x)))))
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Maps images to class scores (logits): (B, 3, S, S) -> (B, C).  S is a multiple of P, usually `image_size`.

    The class token is a learned vector that belongs to no patch: through attention it collects the information that the
    head needs (from BERT, Devlin et al. 2018).  With `pool: mean` there is no class token, and the head gets the mean
    over all patches (Beyer et al. 2022, https://arxiv.org/abs/2205.01580).  Attention by itself ignores the order of
    tokens: permuting its input permutes its output.  So a position embedding, learned or of fixed sines and cosines, is
    added to each token.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.activation_checkpointing = False  # in training, keep only the input of each of `groups`
        side = cfg.image_size // cfg.patch_size
        tokens = side * side + (cfg.pool == "cls")
        self.patches = PatchEmbedding(cfg.patch_size, cfg.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width)) if cfg.pool == "cls" else None
        if cfg.positions == "learned":
            self.positions = nn.Parameter(torch.empty(1, tokens, cfg.width))
        else:
            sines = sincos2d(side, cfg.width)
            self.register_buffer("positions", F.pad(sines, (0, 0, tokens - side * side, 0)), persistent=False)
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(Block(cfg, rate) for rate in drop_path_rates(cfg))
        self.groups: tuple[nn.Module, ...] = tuple(self.blocks)  # what `forward` calls: blocks, or groups of them
        self.norm = nn.LayerNorm(cfg.width, eps=1e-6)
        self.head = nn.Linear(cfg.width, cfg.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal with standard deviation 0.02 for all matrices and positions; zero for biases and the head.

        A head of zeros gives every class the same score, so the first loss is exactly log C.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if isinstance(self.positions, nn.Parameter):
            nn.init.trunc_normal_(self.positions, std=0.02)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images)  # (B, patches, D)
        positions = self.positions_for(images.shape[-1] // self.cfg.patch_size)  # (1, N, D)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, N, D)
        x = self.dropout(x + positions)
        for group in self.groups:
            if self.activation_checkpointing and self.training:
                x = checkpoint(group, x, use_reentrant=False)  # computed again in backward: less memory, more time
            else:
                x = group(x)
        # Only the class token is normalized, if there is one: the head needs no other.
        x = self.norm(x[:, 0]) if self.cls_token is not None else self.norm(x).mean(dim=1)  # (B, D)
        return self.head(x)  # (B, C)

    def positions_for(self, side: int) -> Tensor:
        """The position embedding of a grid of side x side patches: -> (1, N, D).

        Nothing else in the model depends on the size of the images, so it also takes smaller ones, which train faster.
        Learned positions are then resampled to the smaller grid like the pixels of an image; the class token's stays.
        """
        own = self.cfg.image_size // self.cfg.patch_size
        if side == own:
            return self.positions
        cls_position, grid = self.positions.split([self.positions.shape[1] - own * own, own * own], dim=1)
        if self.cfg.positions == "learned":
            grid = resampled(grid, side)
        else:
            grid = on_device(sincos2d, grid.device, side, self.cfg.width, own)
        return torch.cat([cls_position, grid], dim=1)


def drop_path_rates(cfg: ModelConfig) -> list[float]:
    """The drop-path probability of each block: a linear ramp from 0 to `drop_path`, or constant.

    Linear: Huang et al. drop early blocks least, because all later blocks build on them.  Constant ("uniform"): as in
    DeiT-III, https://arxiv.org/abs/2204.07118.
    """
    if cfg.drop_path_rule == "uniform":
        return [cfg.drop_path] * cfg.depth
    return [cfg.drop_path * i / max(1, cfg.depth - 1) for i in range(cfg.depth)]


def sincos2d(side: int, width: int, own: int = 0, temperature: float = 10_000.0) -> Tensor:
    """Fixed 2-D sine-cosine position embedding: -> (1, side², D).

    A quarter of the features each is sin x, cos x, sin y and cos y, as in big_vision's ViT-S/16, https://arxiv.org/abs/2205.01580.
    Images of another size are cut into side² patches instead of `own`²: the coordinates are those of their patches'
    centers in the `own` grid, so that a place of the picture has the same position at each size.
    """
    omega = temperature ** -(torch.arange(width // 4) / (width // 4 - 1))  # (D / 4,)
    centers = (torch.arange(side) + 0.5) * ((own or side) / side) - 0.5  # 0, 1, 2, … in the own grid
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    angles_x, angles_y = (axis.reshape(-1, 1) * omega for axis in (x, y))  # 2 x (side², D / 4)
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1)[None]


def resampled(grid: Tensor, side: int) -> Tensor:
    """Resamples positions to side x side patches, bicubic and antialiased: (1, G², D) -> (1, side², D).

    These are the numbers of `F.interpolate`, up to rounding.  Resampling is linear, so it is the product with a matrix:
    R applied to the columns of the grid, and then to its rows.  The gradient is then a matrix product too, with the
    same bits each time; on GPUs, that of `F.interpolate` is a sum in any order.
    """
    G = math.isqrt(grid.shape[1])
    R = on_device(resampling_matrix, grid.device, side, G)  # (side, G)
    with torch.autocast(grid.device.type, enabled=False):  # in float32, like the positions
        columns = R @ grid.reshape(G, -1)  # (side, G * D)
        return (R @ columns.view(side, G, -1)).view(1, side * side, -1)


def resampling_matrix(new: int, old: int) -> Tensor:
    """The matrix that resamples `old` values to `new` ones: -> (new, old).  Its columns: the resampled unit vectors."""
    return F.interpolate(torch.eye(old)[None, None], (new, old), mode="bicubic", antialias=True)[0, 0]


@functools.cache
@torch.inference_mode(False)  # kept tensors may first be used in evaluation, and then in training
def on_device(function: Callable[..., Tensor], device: torch.device, *sizes: int) -> Tensor:
    """`function(*sizes)`, computed on the CPU once and kept on the device."""
    return function(*sizes).to(device)
