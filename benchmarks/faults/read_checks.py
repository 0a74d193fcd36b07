"""What an attempt to train has left in its run folder while a disk could not be read: is anything lost?"""

import errno
import json

from benchmarks.faults.read_cases import Tree
from benchmarks.faults.read_layer import Extent, Fault
from vit.run.folder import RunFolder


def left_behind(before: Tree, after: Tree, begun: list[int], fault: Fault) -> tuple[bool, list[str]]:
    """Whether steps were repeated, as they may be if a file was gone, and what is wrong with what an attempt left.

    `begun` are the steps at which it began.
    """
    old, new, gone = steps_in(before), steps_in(after), fault.error == errno.ENOENT
    newest, problems = max(old, default=0), []
    quarantined = [name for name in after if ".damaged-" in name and name.count("/") == 1]
    if quarantined and not (gone and fault.extent != Extent.ONCE):
        problems.append(f"an intact checkpoint was quarantined: {', '.join(quarantined)}")
    if max(new, default=0) < newest and not quarantined:
        problems.append(f"step {newest} was saved, but {sorted(new)} is left")
    if len(new) + len(quarantined) < min(2, len(old)):
        problems.append(f"of the checkpoints {sorted(old)}, {sorted(new)} is left")
    for name in after.keys() & before.keys():
        if name.startswith("checkpoints/") and after[name] != before[name] and not quarantined:
            problems.append(f"{name} was changed")
    for step in begun:
        if step < newest and (not gone or step == 0):
            problems.append(f"the attempt began at step {step}, though {newest} is saved")
    if not (after.get("ledger.jsonl") or b"").startswith(before.get("ledger.jsonl") or b""):
        problems.append("the ledger lost events")
    if lost := lost_records(before, after, min([max(new, default=0), *begun])):
        problems.append(f"the learning curve lost {', '.join(lost)}")
    return bool(quarantined) or any(step < newest for step in begun), problems


def steps_in(tree: Tree) -> set[int]:
    """The steps of the checkpoints in a run folder."""
    names = [name.removeprefix("checkpoints/step-") for name in tree if name.startswith("checkpoints/step-")]
    return {int(name) for name in names if name.isdigit()}


def started(run: RunFolder, events: int) -> list[int]:
    """The steps at which attempts began, after the first `events` events of the ledger."""
    return [int(event["step"]) for event in run.events()[events:] if event["event"] == "started"]


def changed(before: Tree, after: Tree) -> list[str]:
    """The files that are not the same."""
    return [name for name in sorted({*before, *after}) if before.get(name, b"") != after.get(name, b"")]


def lost_records(before: Tree, after: Tree, resumed: int) -> list[str]:
    """The records of the learning curve, up to a step from which training went on or will, that are gone."""
    old, new = ((tree.get("metrics.jsonl") or b"").splitlines() for tree in (before, after))
    records = [(line, json.loads(line)) for line in old]
    kept = [line for line, r in records if r["step"] < resumed or (r["step"] == resumed and "loss" in r)]
    return [f"step {json.loads(line)['step']}" for line in kept if line not in new]
