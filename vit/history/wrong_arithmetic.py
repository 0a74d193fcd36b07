"""Nodes and GPUs that computed wrong values, as the ledger has them.  Imports no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from vit.run.folder import Event

EVENT = "wrong arithmetic"  # ranks that should have the same values did not
SETTLED_EVENT = "wrong arithmetic settled"  # the step was computed again, which showed who had been wrong


def left_out(finding: Mapping[str, Any]) -> list[str]:
    """The nodes that a requeue excludes because of a finding.

    All nodes of its suspects if these are known to be wrong, or if there is only one.  Otherwise the one of the last
    suspect: the run then computes the step again on the other one and a new one, which shows who was wrong.
    """
    nodes = list(dict.fromkeys(str(suspect["node"]) for suspect in finding["suspects"]))
    return nodes if finding.get("settled") else nodes[-1:]


def wrong_nodes(events: Sequence[Event]) -> list[str]:
    """Nodes that are known to have computed wrong values, and those that are excluded until that is known."""
    nodes = [node for finding in known_findings(events) for node in left_out(finding)]
    return list(dict.fromkeys(nodes))


def known_findings(events: Sequence[Event]) -> list[Event]:
    """All findings, with what is known about them today: those that were settled later are without the other suspects.

    Without those that cannot be settled any more, and without damaged events.
    """
    later = {event.get("step"): event for event in events if event["event"] == SETTLED_EVENT and _is_whole(event)}
    found = [event for event in events if event["event"] == EVENT and _is_whole(event)]
    known = [event if event.get("settled") else event | _settled(later.get(event["step"])) for event in found]
    return [event for event in known if event["suspects"]]


def _settled(later: Event | None) -> dict[str, Any]:
    return {} if later is None else {"suspects": later["suspects"], "settled": True}


def _is_whole(event: Event) -> bool:
    """Whether the event has the fields that are used, with values of their types."""
    suspects = event.get("suspects")
    if not isinstance(event.get("step"), int) or not isinstance(suspects, list):
        return False
    return all(isinstance(each, dict) and isinstance(each.get("node"), str) for each in suspects)


def times_found(events: Sequence[Event], nodes: Sequence[str]) -> int:
    """How often any of these nodes was among the suspects of a finding."""
    found = [event["suspects"] for event in events if event["event"] == EVENT and _is_whole(event)]
    return sum(any(suspect["node"] in nodes for suspect in suspects) for suspects in found)
