"""From which steps on a run computed on another kind of device: its bits are those of one kind only.  No torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from vit.run.folder import Event


@dataclass(frozen=True)
class DeviceChange:
    """A run resumed on another kind of device."""

    step: int  # the steps after this one are those of the new kind
    before: str  # its name, such as "NVIDIA A100-SXM4-80GB", or "cpu"
    now: str

    def __str__(self) -> str:
        return f"the steps from {self.step + 1:,} on are those of {self.now}, before of {self.before}"


def device_changes(events: Iterable[Event]) -> list[DeviceChange]:
    """The changes that the steps of the run have seen, oldest first; without attempts whose steps were repeated."""
    out: list[DeviceChange] = []
    device = ""
    for event in events:
        name, step = event.get("device_name"), event.get("step")
        if event["event"] != "started" or not isinstance(name, str) or not isinstance(step, int):
            continue
        while out and out[-1].step >= step:  # no step of that attempt is left
            device = out.pop().before
        if device and name != device and step > 0:
            out.append(DeviceChange(step, device, name))
        device = name
    return out
