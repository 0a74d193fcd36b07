"""Imported by the fork server: torch's compiler, which a run with `compile` would import at each start of a rank.

Not before torch 2.15: the import of torch 2.11 asks for the GPUs, which no fork could use any more.
"""

import torch

if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15):
    import torch._inductor.compile_fx
