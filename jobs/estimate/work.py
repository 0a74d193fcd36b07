"""What a run still has to do: its steps by image size, and its evaluations.  No torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.login.resources import display_path
from vit.checkpoint.format import find_checkpoints, step_of
from vit.config.run_schedule import RunSchedule
from vit.config.schema import Config
from vit.data.dataset_manifest import missing_file, read_dataset_manifest
from vit.run.folder import RunFolder

# Images of the published data sets, by the name of their folder: training and validation.
PUBLISHED = {"imagenet": (1_281_167, 50_000), "fashion-mnist": (60_000, 10_000), "pets": (3_680, 3_669)}
IMAGENET = PUBLISHED["imagenet"]


@dataclass(frozen=True)
class Work:
    """The work of a run from a step on."""

    cfg: Config
    samples: int  # images of the training set that are used
    val_samples: int
    assumed: tuple[str, ...] = ()  # what is not known of the data sets, in words
    step: int = 0  # the newest saved one

    @property
    def schedule(self) -> RunSchedule:
        """The steps of the whole run."""
        return RunSchedule(self.cfg, self.samples)

    @property
    def steps_left(self) -> int:
        """Steps from the newest saved one on."""
        return max(0, self.schedule.total_steps - self.step)

    @property
    def images(self) -> int:
        """Images in the steps that are left."""
        return self.steps_left * self.cfg.global_batch

    @property
    def stages(self) -> Iterator[tuple[Config, int]]:
        """The config of each image size, with the images that are left to train on at it."""
        for stage in self.schedule.stages:
            if (steps := stage.stop - max(stage.start, self.step)) > 0:
                yield stage.cfg, steps * self.cfg.global_batch

    @property
    def evaluations(self) -> int:
        """The evaluations that are left; of the averaged weights too, if there are any."""
        schedule, last = self.schedule, self.schedule.total_steps
        if self.step >= last:
            return 0
        every = self.cfg.log.eval_every_epochs * self.samples / self.cfg.global_batch
        done, all_, before_last = (int(schedule.work(step) / every) for step in (self.step, last, last - 1))
        return all_ - done + (all_ == before_last)  # the last step is always evaluated


def work_of(cfg: Config, run: RunFolder) -> Work:
    """What is left of a run.  Raises OSError, UserError."""
    train, val = (_images(path, i) for i, path in enumerate((cfg.data.train, cfg.data.val)))
    saved = find_checkpoints(run.checkpoints)
    limit = cfg.data.limit
    return Work(
        cfg=cfg,
        samples=min(train[0], limit or train[0]),
        val_samples=min(val[0], limit or val[0]),
        assumed=tuple(filter(None, (train[1], val[1]))),
        step=max(map(step_of, saved), default=0),
    )


def _images(beton: Path, split: int) -> tuple[int, str]:
    """The number of images of a data set, and what is assumed about it: it need not be written yet."""
    if not missing_file(beton):
        return read_dataset_manifest(beton).samples, ""
    count = PUBLISHED.get(beton.parent.name, IMAGENET)[split]
    like = "" if beton.parent.name in PUBLISHED else ", as in ImageNet"
    return count, f"{display_path(beton)} is not written yet: {count:,} images are assumed{like}"
