"""What a person would meet when something goes wrong on a GPU.

python -m benchmarks.on_gpu.faults [NAME]
"""

import os
import shutil
import signal
import time

import psutil

from benchmarks.on_gpu.checks import Checks, main, work_folder
from benchmarks.on_gpu.images import data_settings
from benchmarks.on_gpu.jobs import SMALL, run, started, verify_run
from vit.run.folder import RunFolder

checks = Checks()
ONE_GPU = ["--nodes", "1", "--gpus", "1", "--cluster", "debug"]


def recipe(name: str, *options: str) -> list[str]:
    warm_up = ["--optim.warmup_epochs", "0.5"]
    return ["--config", f"configs/{name}.yaml", *options, *warm_up, *data_settings(work_folder())]


@checks.add
def out_of_memory_ends_with_a_sentence_that_says_what_to_set() -> str:
    runs = ["--name", "memory", "--runs-dir", str(work_folder() / "runs")]
    large = ["--micro_batch", "1536", "--compile", "false", "--epochs", "2", "--model.depth", "48"]
    output = run("jobs/submit.py", *recipe("vit_b16", *large), *runs, *ONE_GPU, seconds=150, check=False)
    names = [each["event"] for each in RunFolder(work_folder() / "runs" / "memory").events()]
    sentence = next((line for line in output.splitlines() if "does not fit into the memory" in line), None)
    assert sentence and "--micro_batch" in sentence, output[-1500:]
    assert names.count("failed") == 1, f"it was tried again: {names}"
    return sentence.strip()


@checks.add
def a_second_attempt_takes_over_the_compiled_graphs() -> tuple[str, dict[str, float]]:
    folder, seconds = work_folder() / "runs" / "compiled", []
    shutil.rmtree(folder, ignore_errors=True)
    for attempt in (1, 2):
        cache = work_folder() / f"inductor-{attempt}"
        shutil.rmtree(cache, ignore_errors=True)
        options = ["--global_batch", "384", "--epochs", str(2 * attempt), "--override-resume", "epochs"]
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache / "triton")}
        run("-m", "vit.train", *recipe("vit_b16", *options), "--run-dir", str(folder), seconds=120, **caches)
        finished = RunFolder(folder).last("finished")
        assert finished is not None
        seconds.append(finished["seconds"])
    figures = {f"compile_seconds_{i}": each.get("compile", 0.0) for i, each in enumerate(seconds, 1)}
    return f"{seconds}", figures


@checks.add
def a_job_that_is_suspended_for_twenty_seconds_goes_on() -> str:
    folder = work_folder() / "runs" / "suspended"
    shutil.rmtree(folder, ignore_errors=True)
    options = [*SMALL, "--micro_batch", "64", "--global_batch", "64", "--epochs", "400", "--compile", "false"]
    runs = ["--name", "suspended", "--runs-dir", str(work_folder() / "runs")]
    with started("jobs/submit.py", *recipe("vit_b16", *options), *runs, *ONE_GPU) as process:
        deadline = time.monotonic() + 90
        while RunFolder(folder).last("started") is None:
            assert time.monotonic() < deadline and process.poll() is None, "it did not start"
            time.sleep(0.2)
        time.sleep(4)
        job = psutil.Process(process.pid).children(recursive=True)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for each in job:
                each.send_signal(number)
            time.sleep(20 if number == signal.SIGSTOP else 12)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
    names = [each["event"] for each in RunFolder(folder).events() if each["event"] not in ("checkpoint", "estimated")]
    # The rank and its supervisor write the last two, in any order; a restart would be another event.
    assert sorted(names) == sorted(["supervising", "started", "told to stop", "stopped"]), (names, output[-800:])
    return f"{names}"


@checks.add
def a_run_folder_that_takes_no_pipe_does_not_end_a_rank() -> str:
    folder = work_folder() / "runs" / "pipe"
    shutil.rmtree(folder, ignore_errors=True)
    pipe = {"TORCH_NCCL_DEBUG_INFO_PIPE_FILE": "/nonexistent/pipe-", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
    options = [*SMALL, "--micro_batch", "64", "--global_batch", "64", "--epochs", "1", "--compile", "false"]
    arguments = ["-m", "vit.train", *recipe("vit_b16", *options), "--run-dir", str(folder)]
    run(*arguments, seconds=60, TORCH_FR_BUFFER_SIZE="2000", **pipe)
    return "finished"


@checks.add
def a_compiled_run_that_is_killed_ends_with_the_same_bits() -> str:
    batches = ["--micro_batch", "64", "--global_batch", "128", "--optim.warmup_epochs", "0.5"]
    return verify_run("--kills", "4", "--steps", "40", *batches)


if __name__ == "__main__":
    os.environ.pop("TORCH_NCCL_DEBUG_INFO_PIPE_FILE", None)
    main(checks)
