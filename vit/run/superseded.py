"""What a learning curve says of the attempts before: their last sign, and the time of the steps that are repeated."""

from typing import Any

from vit.run.jsonl import Record

# The phases of the training loop, of which a part is lost if steps are repeated.
LOOP_PHASES = ("data", "step", "sync", "checkpoint", "evaluate")


def work_before(kept: list[Record], superseded: list[Record], step: int) -> dict[str, Any]:
    """What the attempts before one that resumes at `step` did, for the ledger.

    `previous`: step, time and seconds by phase of their last record; `lost`: the seconds by phase, as far as recorded,
    of the steps after `step`.  Empty if the records have no times, as those of older versions.
    """
    timed = [r for r in (*kept[-1:], *superseded) if "time" in r and "seconds" in r]
    if not timed:
        return {}
    last = max(timed, key=lambda record: float(record["time"]))
    out: dict[str, Any] = {"previous": {name: last[name] for name in ("step", "time", "seconds")}}
    lost: dict[str, float] = {}
    groups: dict[int, list[Record]] = {}
    for record in superseded:
        if "time" in record and "seconds" in record:
            groups.setdefault(_process(record), []).append(record)
    for process, records in groups.items():
        before = next((r for r in reversed(kept) if "time" in r and "seconds" in r and _process(r) == process), None)
        for name, seconds in _loop_seconds(before, records, step).items():
            lost[name] = lost.get(name, 0.0) + seconds
    rounded = {name: round(seconds, 3) for name, seconds in lost.items() if seconds > 0.001}
    return out | ({"lost": rounded} if rounded else {})


def _process(record: Record) -> int:
    """Identifies the attempt that wrote a record: the time at which its process began, in seconds."""
    return round(record["time"] - sum(record["seconds"].values()))


def _loop_seconds(before: Record | None, records: list[Record], step: int) -> dict[str, float]:
    """The seconds that one attempt spent in its loop after `step`; `before` is its last record that is kept."""
    first, last = records[0], records[-1]
    out = {}
    for name in LOOP_PHASES:
        at_first, at_last = first["seconds"].get(name, 0.0), last["seconds"].get(name, 0.0)
        at_step = before["seconds"].get(name, 0.0) if before is not None else 0.0
        if before is not None and first["step"] > before["step"]:  # the step is between two records
            at_step += (at_first - at_step) * (step - before["step"]) / (first["step"] - before["step"])
        out[name] = max(0.0, at_last - at_step)
    return out
