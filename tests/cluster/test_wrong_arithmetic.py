"""A node that computes wrong values is left at the requeue, and the run ends with the right bits."""

from tests.helpers.cluster_case import Case, campaign
from tests.helpers.flipped_bits import PATCH, PATCHED_FILE, PATCHED_LINE
from vit.history.wrong_arithmetic import EVENT

WEIGHT = "model.blocks.0.attention.qkv.weight"
OPTIONS = ("--checks.checksum_every_steps", "1", "--checkpoint.every_minutes", "0.005")


def submit_faulty(case: Case, *faults: str, nodes: str = "1") -> None:
    """Submits a run on ranks that flip bits; `faults` as in tests/helpers/flipped_bits.py."""
    case.submit_patched(PATCHED_FILE, PATCHED_LINE, PATCH, "--nodes", nodes, *OPTIONS)
    (case.run.path / "faults").write_text("\n".join(faults))


def test_a_node_that_computes_wrong_values_is_excluded_at_the_requeue(case: Case, reference_weights: bytes) -> None:
    """Its two ranks differ: one of them was wrong, so it was this node.  The other node goes on before the flip."""
    submit_faulty(case, f"20 1 {WEIGHT}")
    case.finish()
    (found,), (event,) = case.events(EVENT), case.events("requeueing")
    node = found["suspects"][0]["node"]
    assert (found["step"], {suspect["node"] for suspect in found["suspects"]}) == (20, {node})
    assert (event["kind"], event["node"], event["exclude"], event["step"]) == ("unhealthy", node, [node], 20)
    assert f"requeueing the job without {node}: the step is computed again on other nodes" in case.job_output()
    assert case.slurm.job(case.job)["BatchHost"] != node
    assert case.slurm.job(case.job)["ExcNodeList"] == node
    first, second = case.start_steps()
    assert first == 0 and second < 20
    assert case.weights() == reference_weights


@campaign
def test_a_wrong_node_is_kept_if_there_is_no_other(case: Case, reference_weights: bytes) -> None:
    """All nodes are in the job: its ranks restart in place, and the majority has named the rank and its node."""
    submit_faulty(case, f"20 3 {WEIGHT}", nodes="2")
    with case.slowed():
        case.wait_until(lambda: len(case.ranks()) == 4, "the ranks")
        node = case.ranks()[3].environ()["SLURMD_NODENAME"]
    case.finish()
    (found,) = case.events(EVENT)
    assert found["settled"] and [(each["rank"], each["node"]) for each in found["suspects"]] == [(3, node)]
    (event,) = case.events("restarting in place")
    assert (event["kind"], event["node"]) == ("unhealthy", node)
    assert case.weights() == reference_weights
