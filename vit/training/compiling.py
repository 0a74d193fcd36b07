"""torch.compile for all image sizes of a run: a static graph for each, compiled before its first step."""

from collections.abc import Callable, Iterable, Sequence

import torch

from vit.config.schema import Config
from vit.model.vision_transformer import VisionTransformer
from vit.optim.loss import training_loss

# Graphs of a block for one shape of its input: in training with and without drop path, in evaluation with and without
# drop path, and these of the EMA, whose weights need no gradient.
GRAPHS_PER_SHAPE = 6


def compile_model(models: Iterable[VisionTransformer], shapes: int = 2) -> None:
    """Compiles the models block by block when they are first called; `shapes`: how many their input has in a run.

    All blocks share the graph of a shape, and the all-reduce of gradients still overlaps with backward.
    """
    # DDPOptimizer would cut this graph in two, at the end of DDP's first bucket, which takes more memory and launches,
    # and which torch's cache of graphs does not keep.
    torch._dynamo.config.optimize_ddp = False
    # After too many graphs of one function torch would go on without compiling it, in other bits.
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        least = max(getattr(torch._dynamo.config, limit), GRAPHS_PER_SHAPE * shapes)
        setattr(torch._dynamo.config, limit, least)
    for model in models:
        for block in model.blocks:
            # Static: by default torch compiles the second shape that it sees as one of any size, which is slower.  Its
            # bits would then depend on the shapes that this attempt has seen before.
            block.compile(dynamic=False)


def compile_ahead(
    model: VisionTransformer,
    cfgs: Sequence[Config],
    autocast: Callable[[], torch.autocast],
    go_on: Callable[[], bool] = lambda: True,
) -> None:
    """Compiles forward and backward for micro-batches of these configs, the largest first, while `go_on()` is true.

    It runs each once on images of zeros, so that a GPU whose memory is too small for one is noticed, too.  Nothing
    remains of that: no gradients, no random draws.
    """
    sizes = {(cfg.model.image_size, cfg.micro_batch): cfg for cfg in cfgs}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device, was_training = parameters[0].device, model.training
    model.train()
    for side, micro_batch in sorted(sizes, key=lambda size: size[0] ** 2 * size[1], reverse=True):
        if not go_on():
            break
        cfg = sizes[side, micro_batch]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            with autocast():
                logits = model(torch.zeros(micro_batch, 3, side, side, device=device))
                loss = training_loss(logits, torch.zeros(logits.shape, device=device), cfg.optim.loss)
            torch.autograd.grad(loss, parameters)  # not `backward`, which writes to `.grad` and calls DDP's hooks
    model.train(was_training)
