"""Imported by the fork server: what a run with `compile` would do at each start of a rank, before its first graph.

These are imports, and digests of the files of torch and Triton, which are part of the name of every compiled graph.
torch's compiler only from torch 2.15 on: its import in torch 2.11 asks for the GPUs, which no fork could use any more.
"""

import importlib
from contextlib import suppress

import torch

if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 15):
    import torch._inductor.compile_fx

    with suppress(AttributeError):  # another version
        torch._inductor.codecache.torch_key()
with suppress(ImportError, AttributeError):  # no Triton, or another version
    importlib.import_module("triton.experimental.gluon")
    importlib.import_module("triton.runtime.cache").triton_key()
