"""Imported by the server of the ranks with null GPUs: what each rank would do before its first compiled kernel.

Imports of torch's compiler and Triton, and a digest of Triton's own files: more than a second in each rank.
"""

import importlib
from contextlib import suppress

importlib.import_module("jobs.node.forkserver_compiler")
with suppress(ImportError, AttributeError):  # other versions of Triton
    importlib.import_module("triton.experimental.gluon")
    importlib.import_module("triton.runtime.cache").triton_key()
