"""Reads names and shapes from a file of `torch.save`, without torch and without running what the file contains.

A pickle names classes and functions that are called while it is loaded, so it can run any program.  Here none of them
is called, except those that rebuild a dictionary or the shape of a tensor.
"""

import pickle
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any

from vit.config.user_error import UserError

# What trainers store next to weights, and cannot do any harm: the name in the file, and the class to load it as.
HARMLESS = {
    "argparse.Namespace": "argparse:Namespace",
    "types.SimpleNamespace": "types:SimpleNamespace",
    "builtins.frozenset": "builtins:frozenset",
    "builtins.slice": "builtins:slice",
    "builtins.range": "builtins:range",
    **{f"datetime.{name}": f"datetime:{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")},
    # A path is loaded as one that does not touch the disk; from Python 3.13 their module has another name.
    **{
        f"{module}.{flavor}": f"pathlib:Pure{flavor.removeprefix('Pure')}"
        for module in ("pathlib", "pathlib._local")
        for flavor in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
    },
    "numpy.ndarray": "numpy:ndarray",
    "numpy.dtype": "numpy:dtype",
    # numpy 1 and numpy 2 have them in different modules.
    **{
        f"numpy.{core}.multiarray.{name}": f"numpy._core.multiarray:{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
    "torch.torch_version.TorchVersion": "torch.torch_version:TorchVersion",
}
# Others that torch loads by default.
_DEFAULT = {
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.set",
    "builtins.complex",
}
_ZIP = b"PK\x03\x04"  # the first bytes of a zip file
_LEGACY_RECORDS = 3  # pickles before that of the object: magic number, protocol version, system


class TensorShape(tuple[int, ...]):
    """The shape of a tensor in the file."""


class _Ignored:
    """Stands for every object that is neither a dictionary nor a tensor."""

    def __new__(cls, *_: Any, **__: Any) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass


def _tensor(_storage: Any, _offset: int, size: tuple[int, ...], *_: Any) -> TensorShape:
    return TensorShape(size)


def _same(tensor: Any, *_: Any) -> Any:
    return tensor


def _call(function: Any, _type: Any, arguments: tuple[Any, ...], *_: Any) -> Any:
    """In place of `_rebuild_from_type_v2`, for tensors with attributes."""
    return function(*arguments)


_REBUILT = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._tensor._rebuild_from_type_v2": _call,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        # torch.save writes Python 2's names of modules.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full_name = f"{module}.{name}"
        if full_name in _REBUILT:
            return _REBUILT[full_name]
        if full_name in HARMLESS or full_name in _DEFAULT or module == "torch" or module.startswith("torch."):
            return _Ignored  # torch itself decides on its own classes when the weights are loaded
        raise refusal(self._path, full_name)

    def persistent_load(self, pid: Any) -> Any:
        """Of a tensor, its bytes, which are not read; in the format before torch 1.6 also the class of a module."""
        return pid[1] if pid[0] == "module" else None


def refusal(path: Path, name: str) -> UserError:
    """The error for a file that names a class or function which is not known to be harmless."""
    return UserError(
        f"{path} contains {name}, which is not loaded because a pickle can run any program; "
        'save the weights alone, with torch.save(model.state_dict(), "weights.pth")'
    )


def read_shapes(path: Path) -> Any:
    """The object that a file of `torch.save` contains, with a TensorShape in place of each tensor.

    Raises UserError for a class that is not known to be harmless, OSError, and for a file that is damaged or is no
    such file almost anything.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP  # zipfile.is_zipfile hides errors of reading
        file.seek(0)
        if not is_zip:
            for _ in range(_LEGACY_RECORDS):  # the format before torch 1.6
                _Unpickler(file, path).load()
            return _Unpickler(file, path).load()
        with zipfile.ZipFile(file) as archive:
            name = next(name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            with archive.open(name) as record:
                return _Unpickler(record, path).load()
