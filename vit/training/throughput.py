"""The speed of a run: images per second, the time left, and model FLOP/s utilization."""

import time
from collections.abc import Iterable, Sequence

from vit.config.run_schedule import Stage
from vit.history.utilization import utilization
from vit.run.jsonl import Record


class Throughput:
    """Measures the steps since `step`, or since the last call of `measure`, of a run with these stages.

    Images may differ in size from stage to stage: the time left is that of the remaining pixels at the measured pixels
    per second.
    """

    def __init__(self, stages: Sequence[Stage], ranks: int, device_name: str, step: int) -> None:
        self.stages, self.ranks, self.device_name = stages, ranks, device_name
        self.restart(step)

    def restart(self, step: int) -> None:
        """Measures from this step on: graphs were compiled before, or a step has failed after it."""
        self._step, self._time = step, time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Excludes time that was not spent on steps, e.g. on an evaluation."""
        self._time += seconds

    def measure(self, step: int) -> Record:
        """`images_per_second` and `seconds_left` at `step`; also `mfu` if the peak of the device is known."""
        now = time.perf_counter()
        done, left = list(self._images(min(self._step, step - 1), step)), self._images(step, self.stages[-1].stop)
        seconds = now - self._time
        self._step, self._time = step, now
        out = {
            "images_per_second": round(sum(images for _, images in done) / seconds, 1),
            "seconds_left": round(seconds * _pixels(left) / _pixels(done), 1),
        }
        of_stages = [
            utilization(stage.cfg.model, stage.cfg.precision, self.device_name, self.ranks, images / seconds)
            for stage, images in done
        ]
        mfu = [share for share in of_stages if share is not None]
        return out | ({"mfu": round(sum(mfu), 4)} if mfu else {})

    def _images(self, start: int, stop: int) -> Iterable[tuple[Stage, int]]:
        """The number of images in the steps from `start` to `stop` - 1, by stage."""
        for stage in self.stages:
            steps = min(stop, stage.stop) - max(start, stage.start)
            if steps > 0:
                yield stage, steps * stage.cfg.global_batch


def _pixels(images: Iterable[tuple[Stage, int]]) -> int:
    return sum(count * stage.cfg.model.image_size**2 for stage, count in images)
