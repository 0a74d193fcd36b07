"""Ranks that take the path of ranks on GPUs, on a machine without one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.distributed as dist

from vit.config.schema import Config
from vit.distributed.world import World, join_process_group


@contextmanager
def joined_as_on_gpus(cfg: Config, destroy: Callable[[], None]) -> Iterator[World]:
    """Joins a process group as a rank on a GPU does, with gloo in the place of NCCL and another way to destroy it."""

    def with_gloo(backend: str, device_id: torch.device, **options: object) -> None:
        join(backend="gloo", **options)

    join = dist.init_process_group
    with ExitStack() as patches:
        for name, stand_in in (
            ("vit.distributed.world.pick_device", lambda *_: torch.device("cuda", 0)),
            ("torch.cuda.set_device", lambda _: None),
            ("torch.distributed.init_process_group", with_gloo),
            ("torch.distributed.destroy_process_group", destroy),
        ):
            patches.enter_context(mock.patch(name, stand_in))
        with join_process_group(cfg) as world:
            yield world
