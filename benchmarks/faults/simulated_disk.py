"""A simulated disk that promises no more than POSIX, and the states in which a power cut may leave it.

The bytes of a file are safe once the file is synced, and its name once its folder is synced.  Each change that is not
synced yet may have reached the disk or not, independently of all others.
"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

from benchmarks.faults.layer import Operation

ALL_SUBSETS_UP_TO = 5  # unsynced changes of names; with more of them only some subsets are tried
UNSYNCED_BYTES = ("kept", "gone", "short", "zeros")  # what a power cut may do to them
Tree = dict[str, bytes]  # path -> content; paths of folders end in "/"


@dataclass
class File:
    """The content of a file as processes see it, and as it was last synced."""

    current: bytes = b""
    synced: bytes = b""

    def after_power_cut(self, how: str) -> bytes:
        """The content after a power cut, with one of `UNSYNCED_BYTES`."""
        if how == "kept" or self.current == self.synced:
            return self.current
        if how == "gone":
            return self.synced
        # The length of the common prefix.
        shared = next((i for i, (a, b) in enumerate(zip(self.current, self.synced, strict=False)) if a != b), None)
        shared = min(len(self.current), len(self.synced)) if shared is None else shared
        kept = shared + (len(self.current) - shared) // 2
        return self.current[:kept] if how == "short" else self.current[:shared] + bytes(len(self.current) - shared)


@dataclass
class Change:
    """A change of a name in a folder that has not been synced since."""

    folder: int
    name: str  # the name that is added or removed
    node: int | None  # the file or folder that it refers to; None: the name is removed
    old_name: str | None = None  # removed at the same time, by a rename


@dataclass
class SimulatedDisk:
    """The files and folders below one folder.  Each has a node number, because inodes are reused; the root is 0."""

    files: dict[int, File] = field(default_factory=dict)  # by node
    folders: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})  # node -> names, as synced
    changes: list[Change] = field(default_factory=list)  # not synced, in order
    current: dict[str, int] = field(default_factory=lambda: {"": 0})  # path -> node, as processes see it
    nodes: dict[int, int] = field(default_factory=dict)  # inode -> node
    created: int = 0

    def apply(self, operation: Operation, root: str) -> None:
        """Applies an operation of a process.  `root` is the path of node 0."""
        path = operation.path.removeprefix(root).strip("/").removesuffix(" (deleted)")
        match operation.call:
            case "create" | "mkdir":
                self.created += 1
                self.current[path] = self.nodes[operation.inode] = self.created
                if operation.call == "create":
                    self.files[self.created] = File()
                else:
                    self.folders[self.created] = {}
                self._change(path, self.created)
            case "write":
                file = self.files[self.nodes[operation.inode]]
                end = operation.offset + len(operation.data)
                file.current = file.current[: operation.offset] + operation.data + file.current[end:]
            case "cut":
                file = self.files[self.nodes[operation.inode]]
                file.current = file.current[: operation.offset]
            case "fsync":
                self._sync(self.current[path] if path in self.current else self.nodes[operation.inode])
            case "remove":
                del self.current[path]
                self._change(path, None)
            case "rename":
                other = operation.other.removeprefix(root).strip("/")
                node = self.current[path]
                inside = {p: n for p, n in self.current.items() if p == path or p.startswith(f"{path}/")}
                self.current = {p: n for p, n in self.current.items() if p not in inside}
                self.current |= {other + p.removeprefix(path): n for p, n in inside.items()}
                self._change(other, node, path.rpartition("/")[2])
            case _:
                raise AssertionError(operation.call)

    def _change(self, path: str, node: int | None, old_name: str | None = None) -> None:
        folder, _, name = path.rpartition("/")
        self.changes.append(Change(self.current[folder], name, node, old_name))

    def _sync(self, node: int) -> None:
        if node in self.files:
            self.files[node].synced = self.files[node].current
            return
        for change in self.changes:
            if change.folder == node:
                _apply(self.folders, change)
        self.changes = [change for change in self.changes if change.folder != node]
        used = {0, *(n for names in self.folders.values() for n in names.values()), *(c.node for c in self.changes)}
        self.folders = {n: names for n, names in self.folders.items() if n in used}
        self.changes = [change for change in self.changes if change.folder in self.folders]  # not in removed folders

    def after_power_cut(self, rng: random.Random) -> Iterator[Tree]:
        """The states that may be left: subsets of the unsynced changes, each with all kinds of `UNSYNCED_BYTES`.

        With many changes: all prefixes, all but one, each one alone, and 16 random subsets.
        """
        count = len(self.changes)
        subsets: set[tuple[int, ...]] = {tuple(range(n)) for n in range(count + 1)}
        if count <= ALL_SUBSETS_UP_TO:
            subsets |= {subset for n in range(count + 1) for subset in combinations(range(count), n)}
        else:
            every = range(count)
            subsets |= {tuple(i for i in every if i != left_out) for left_out in every} | {(i,) for i in every}
            subsets |= {tuple(i for i in every if rng.random() < 0.5) for _ in range(16)}
        for subset in sorted(subsets):
            folders = {node: dict(names) for node, names in self.folders.items()}
            for i in subset:
                _apply(folders, self.changes[i])
            for how in UNSYNCED_BYTES:
                yield dict(self._tree(folders, 0, "", how))

    def _tree(self, folders: dict[int, dict[str, int]], node: int, path: str, how: str) -> Iterator[tuple[str, bytes]]:
        for name, child in folders[node].items():
            if child in self.files:
                yield path + name, self.files[child].after_power_cut(how)
            else:
                yield f"{path}{name}/", b""
                yield from self._tree(folders, child, f"{path}{name}/", how)


def _apply(folders: dict[int, dict[str, int]], change: Change) -> None:
    names = folders[change.folder]
    if change.old_name is not None:
        names.pop(change.old_name, None)
    if change.node is None:
        names.pop(change.name, None)
    else:
        names[change.name] = change.node


def write_tree(folder: Path, tree: Tree) -> None:
    """Replaces the content of a folder by a tree."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path, data in tree.items():
        target = folder / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.write_bytes(data)
