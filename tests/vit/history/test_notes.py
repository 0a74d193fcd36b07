"""The notes on a run: each where its cause was measured, and none on a run that uses well what it was given."""

from dataclasses import replace
from typing import Any

import pytest

from vit.history.attempts import Attempt
from vit.history.notes import notes
from vit.history.resources import Usage
from vit.history.run_history import RunHistory
from vit.run.hints import command

GPU, OTHER_GPU = "NVIDIA A100-SXM4-80GB", "NVIDIA L40S"
SETTINGS = {"global_batch": 1536, "micro_batch": 384, "precision": "bf16", "compile": True, "optim.clip_norm": 1.0}
HOUR = 3600.0


def attempt(number: int = 1, began: float = 0.0, **values: Any) -> Attempt:
    """An hour on one node; of its seconds, `step` has what the other phases leave."""
    seconds = {"start": 20.0} | values.pop("seconds", {})
    seconds["step"] = HOUR - sum(seconds.values())
    defaults: dict[str, Any] = {"first_step": 0, "last_step": 9000, "ranks": 4, "device": GPU, "node": "n1"}
    ends = {"ended": began + HOUR, "started": began + 20, "at_start": 20.0, "ending": "stopped", "why": "preempted"}
    return Attempt(number=number, began=began, seconds=seconds, **defaults | ends | values)


def history(*attempts: Attempt, settings: dict[str, Any] | None = None, **values: Any) -> RunHistory:
    """A run of ImageNet on four GPUs."""
    return RunHistory(attempts=attempts or (attempt(),), settings=SETTINGS | (settings or {}), **values)


def usage(**values: Any) -> Usage:
    """What a node with four GPUs and 16 cores was used for."""
    defaults = {"gpu": 0.95, "gpu_memory": 70 * 2**30, "gpu_memory_total": 80 * 2**30, "cores": 16, "cpu": 0.97}
    return Usage(node="n1", began=0, seconds=HOUR, **defaults | values)


def curve(losses: list[float], top1: list[float] | None = None, val_loss: list[float] | None = None) -> list[Any]:
    """A record for each loss, ten for each epoch, and the evaluations of the epochs."""
    steps = [
        {"step": 10 * i, "epoch": i / 10, "loss": loss, "images_per_second": 1900.0} for i, loss in enumerate(losses)
    ]
    scores = [
        {"step": 100 * (i + 1), "epoch": i + 1, "val_top1": score, "val_loss": val_loss[i] if val_loss else 1.0}
        for i, score in enumerate(top1 or [])
    ]
    return sorted([*steps, *scores], key=lambda record: record["step"])


def event(name: str, **values: Any) -> dict[str, Any]:
    """An event of the ledger."""
    return {"event": name, "time": 5.0, **values}


def finding(step: int, *nodes: str, settled: bool = False, event: str = "wrong arithmetic") -> dict[str, Any]:
    """Ranks that differed, or what was found out about it later."""
    suspects = [{"rank": 0, "node": node, "gpu": f"GPU-{node}", "value": ""} for node in nodes]
    known = {"what": "weights", "settled": settled} if event == "wrong arithmetic" else {}
    return {"event": event, "time": 5.0, "step": step, "suspects": suspects, **known}


def test_a_run_that_uses_well_what_it_was_given_has_no_notes() -> None:
    """Nor has one of which nothing is known, or one that has only begun."""
    learning = curve([3.0 / (1 + i / 40) for i in range(400)], [0.7 + i / 1000 for i in range(30)])
    assert notes(history(curve=learning, usage=[usage()])) == []
    assert notes(RunHistory()) == []
    short = attempt(ended=100, seconds={"data": 90.0})
    short.seconds = {"start": 5, "data": 90, "step": 5}
    assert notes(history(short)) == []


WAITING = attempt(seconds={"data": 0.31 * HOUR, "start": 0.0})
REPEATED = [attempt(i, 2 * i * HOUR, lost_steps=300, lost={"step": 0.06 * HOUR}, ending="failed") for i in (1, 2)]
COMPILING = [attempt(i, 2 * i * HOUR, seconds={"compile": 0.09 * HOUR}) for i in (1, 2, 3)]
SAVING = attempt(seconds={"checkpoint": 0.06 * HOUR})
SAVES = [event("checkpoint", step=i, stall=10.8) for i in range(20)]
LIMITED = [
    attempt(i, 2 * i * HOUR, seconds={"start": 700.0}, at_start=700.0, why="near the time limit") for i in (1, 2)
]
SLOW = [attempt(i, 2 * i * HOUR, node=f"n{i}", last_step=6000 if i == 3 else 9000) for i in (1, 2, 3, 4)]
KILLED = [event("restarting in place", kind="signal", node="n3", reason="ended with SIGKILL") for _ in range(3)]
STALLED = [event("restarting in place", kind="stalled", node="n1", reason="stalled for 60 s in phase 'data'")] * 2


@pytest.mark.parametrize(
    ("run", "note"),
    [
        (
            history(WAITING, usage=[usage()], curve=curve([2.0] * 40)),
            "data wait 31%: 16 cores feed 1,900 images/s, the GPUs take 2,754: ask for 6 cpus_per_gpu, or set "
            "data.decoder scaled",
        ),
        (
            history(WAITING, usage=[usage(cpu=0.2)], curve=curve([2.0] * 40)),
            "data wait 31%: the cores are only 20% busy, so reading the images is slow: data.stage $TMPDIR copies them "
            "to each node, data.cache memory keeps them there",
        ),
        (
            history(WAITING, usage=[usage()], curve=curve([2.0] * 40), settings={"data.workers": 2}),
            "data wait 31%: 2 data.workers feed 1,900 images/s, the GPUs take 2,754: set data.workers 0 to use all 4 "
            "cores",
        ),
        (
            history(WAITING),
            "data wait 31%: the GPUs wait for images; ask for more cpus_per_gpu, or set data.decoder scaled",
        ),
        (
            history(usage=[usage(gpu_memory=31 * 2**30)], settings={"global_batch": 3072}),
            "memory peak 31 of 80 GB: micro_batch 768 fits (for a new run: it is in the recipe)",
        ),
        (
            history(*COMPILING),
            "9% of the time compiling, in 3 of 3 attempts (5:24 after the first): jobs with a longer time restart less "
            "often, and compile false never does",
        ),
        (
            history(COMPILING[0], attempt(2, 4 * HOUR, seconds={"compile": 400.0}, device=OTHER_GPU)),
            f"10% of the time compiling, in 2 of 2 attempts: each kind of GPU compiles anew ({GPU}, {OTHER_GPU}); "
            "request one kind with constraint or gres",
        ),
        (
            history(SAVING, events=SAVES, settings={"checkpoint.every_minutes": 3.0}),
            "6% of the time waiting for checkpoints: 10.8 s each, every 3:00; checkpoint.every_minutes 18 would take "
            "1%",
        ),
        (
            history(SAVING, events=SAVES),
            "6% of the time waiting for checkpoints: 10.8 s each, every 3:00; put the run folder (--runs-dir) on a "
            "faster disk",
        ),
        (
            history(*REPEATED, events=SAVES[:1], settings={"checkpoint.every_minutes": 30.0}),
            "6% of the time lost: 600 steps repeated after 2 interruptions; set checkpoint.every_minutes 5",
        ),
        (
            history(*REPEATED),
            "6% of the time lost: 600 steps repeated after 2 interruptions; set checkpoint.expected_failure_hours 1, "
            "which saves more often",
        ),
        (
            history(*LIMITED),
            "19% of the time starting: 11:40 for each of 2 attempts; request a longer time: 2 ended at the time limit",
        ),
        (
            history(attempt(seconds={"start": 100.0, "stage": 500.0}, at_start=600.0)),
            "17% of the time starting: 10:00, most of it copying data to the nodes; leave "
            "data.stage empty, or request a longer time",
        ),
        (
            history(attempt(seconds={"evaluate": 0.2 * HOUR}), curve=curve([2.0], [0.5, 0.6, 0.7])),
            "20% of the time evaluating; log.eval_every_epochs 4 would take about 5%",
        ),
        (
            history(attempt(queued=2 * HOUR)),
            "2:00:00 in the queue, for 1 start: a job with a shorter time or fewer GPUs often starts sooner; the run "
            "continues over many jobs",
        ),
        (history(*SLOW), "steps took 50% longer on n3 than elsewhere: exclude n3"),
        (
            history(usage=[usage(gpu=0.3)], settings={"compile": False}),
            "the GPUs are busy only 30% of the time, although they need not wait for images: try compile true",
        ),
        (
            history(settings={"precision": "float32"}),
            f"precision float32 uses at most 1/16 of the peak of {GPU}: bf16 (for a new run) is faster",
        ),
        (
            history(attempt(node="n1"), attempt(2, node="n3"), events=KILLED),
            "3 of 3 failures were on n3: exclude n3, and tell the cluster's administrators",
        ),
        (
            history(events=KILLED[:2]),
            "2 failures by SIGKILL: if nobody killed the ranks, the node's memory was full: request more mem",
        ),
        (
            history(events=STALLED),
            "2 stalls, most in phase 'data': logs/rank-N.stacks shows what the ranks waited for",
        ),
        (
            history(attempt(why="told to stop, but killed before it had saved", lost_steps=9)),
            "1 stop came too late to save (9 steps repeated): `DOCTOR` measures "
            "the grace time",
        ),
        (
            history(events=[event("checkpoint failed", error="[Errno 122] Disk quota exceeded\nmore")]),
            "1 checkpoint could not be saved ([Errno 122] Disk quota exceeded): check the quota and the free space",
        ),
        (
            history(events=[finding(40, "n2", settled=True), finding(90, "n2", settled=True)]),
            "GPU-n2 of n2 computed wrong values (weights of step 40, weights of step 90): exclude n2, and tell the "
            "cluster's administrators",
        ),
        (
            history(events=[finding(40, "n1", "n2")]),
            "GPU-n1 of n1 or GPU-n2 of n2 computed wrong values (weights of step 40): exclude n1, n2, and tell the "
            "cluster's administrators",
        ),
        (
            history(events=[finding(40, "n1", "n2"), finding(40, "n1", event="wrong arithmetic settled")]),
            "GPU-n1 of n1 computed wrong values (weights of step 40): exclude n1, and tell the cluster's "
            "administrators",
        ),
        (
            history(events=[event("damaged checkpoint", step=7)] * 2),
            "2 checkpoints found damaged and set aside: tell the administrators of the file system",
        ),
        (
            history(events=[event("damaged sample", problem="a"), event("damaged sample", problem="a")]),
            "1 damaged image in the data set, see ledger.jsonl: write the file again",
        ),
        (
            history(events=[event("skipped", step=7), event("skipped", step=8)], settings={"optim.clip_norm": 0.0}),
            "2 steps skipped as not finite, of 10 that are allowed (optim.max_skipped): lower optim.lr, or set "
            "optim.clip_norm 1",
        ),
        (
            history(curve=curve([max(2.0, 7 - i / 20) for i in range(200)] + [6.5] * 40)),
            "the training loss rose from 2.00 at epoch 10.5 to 6.50: it diverges; try a lower optim.lr, or more "
            "optim.warmup_epochs",
        ),
        (
            history(curve=curve([6.9] * 100, [0.001] * 9), settings={"optim.warmup_epochs": 5.0}),
            "top-1 is 0.10% after 9 epochs, no better than guessing among 1,000 classes: check optim.lr and the labels "
            "of the data set",
        ),
        (
            history(curve=curve([3 / (1 + i / 20) for i in range(100)], [0.5, 0.6, 0.7, 0.69, 0.68, 0.66, 0.65],
                                [2.0, 1.5, 1.2, 1.3, 1.4, 1.5, 1.6])),
            "validation top-1 fell from 70.00% at epoch 3 to 65.00% while the training loss fell too: overfitting; "
            "train for fewer epochs, or use more augmentation and drop_path",
        ),
    ],
)  # fmt: skip
def test_each_note_says_what_was_measured_and_what_to_change(run: RunHistory, note: str) -> None:
    """One sentence, and nothing else is remarked."""
    assert notes(run) == [note.replace("DOCTOR", command("jobs/doctor.py", "--preempt"))]


def test_nothing_is_advised_that_cannot_be_done() -> None:
    """A larger micro-batch must divide the batch on these ranks; CPUs have no GPUs that wait."""
    assert notes(history(usage=[usage(gpu_memory=31 * 2**30)])) == []  # 384 x 4 ranks are the whole batch
    assert notes(history(attempt(device="cpu", seconds={"data": 0.4 * HOUR}))) == []
    assert notes(history(attempt(node="n3"), events=KILLED[:1] * 3, settings={}))[0].startswith("3 failures by SIGKILL")


@pytest.mark.parametrize(
    "bad", [{"global_batch": "x", "micro_batch": None}, {"optim.max_skipped": []}, {"precision": 3}]
)
def test_settings_of_other_types_do_not_matter(bad: dict[str, Any]) -> None:
    """A config of another version, or a damaged one."""
    notes(history(WAITING, usage=[usage(gpu_memory=2**30)], events=[event("skipped", step=1)], settings=bad))


@pytest.mark.parametrize(
    "run", [history(*SLOW), history(usage=[usage(gpu_memory=31 * 2**30)], settings={"global_batch": 3072})]
)
def test_steps_that_differ_in_the_size_of_their_images_are_not_compared(run: RunHistory) -> None:
    """Those of later attempts are slower on any node, and their peak of memory is not that of all steps."""
    grows = {"train_sizes": [[0.5, 128, 768], [0.5, 224, 384]]}
    assert len(notes(run)) == 1
    assert notes(replace(run, settings={**run.settings, **grows})) == []
