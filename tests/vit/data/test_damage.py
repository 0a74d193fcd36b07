"""Damage: bytes that are not what was written are named, replaced or counted, and the run stays what it was."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.data_sets import JPEGS, small_config
from tests.helpers.paths import ROOT
from vit.config.schema import Config, to_yaml
from vit.data.beton import open_beton
from vit.data.damage import check_pages
from vit.data.dataset_manifest import manifest_path
from vit.data.decode import DamagedDataError
from vit.data.loader import TrainData, ValData
from vit.data.order import Order
from vit.distributed.world import World


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_size=size, device=torch.device("cpu"), local_rank=rank)


def destroy(path: Path, *samples: int) -> None:
    """Overwrites the beginning of some JPEGs."""
    beton = open_beton(path)
    with path.open("r+b") as file:
        for sample in samples:
            file.seek(int(beton.offset[sample]))
            file.write(bytes(64))


def skipping(path: Path, **changes: object) -> Config:
    cfg = replace(small_config(path), global_batch=24, micro_batch=6)
    return replace(cfg, data=replace(cfg.data, on_bad="skip", verify="never", **changes))


def shown(cfg: Config, ranks: int, start: int, stop: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Samples, labels and pixels of all ranks, micro-batch after micro-batch."""
    parts = [
        [
            (b.samples.copy(), b.labels.clone(), b.images.clone())
            for b in TrainData(cfg, world(r, ranks)).batches(start, stop)
        ]
        for r in range(ranks)
    ]
    in_order = [part[step] for step in range(stop - start) for part in parts]
    samples, labels, images = zip(*in_order, strict=True)
    return np.concatenate(samples), torch.cat(labels), torch.cat(images)


def test_a_damaged_image_is_replaced_by_the_next_of_its_class(copy: Path) -> None:
    """By one rule for every number of ranks and threads, and only where it is due; the labels stay the same."""
    beton = open_beton(copy)
    of_class = np.flatnonzero(beton.labels == beton.labels[20])
    first, second = of_class[-1], of_class[0]  # the last in the file and, going round, the first
    third = of_class[1]
    destroy(copy, int(first), int(second))

    cfg = skipping(copy)
    expected = Order(cfg.seed, JPEGS).at(np.arange(24 * 8)).samples
    samples, labels, images = shown(cfg, 1, 0, 8)
    assert np.array_equal(samples, np.where(np.isin(expected, [first, second]), third, expected))
    assert np.array_equal(labels.numpy(), beton.labels[expected])
    assert (expected == first).any() and (expected == second).any()
    for ranks, workers, start in ((2, 1, 0), (4, 3, 3), (1, 4, 5)):
        again = shown(skipping(copy, workers=workers), ranks, start, 8)
        assert np.array_equal(again[0], samples[24 * start :])
        assert torch.equal(again[1], labels[24 * start :])
        assert torch.equal(again[2], images[24 * start :])


def test_each_damaged_image_is_told_of_once(copy: Path) -> None:
    """With the file, the place, and what is shown instead."""
    destroy(copy, 5)
    data = TrainData(skipping(copy), world())
    assert len(list(data.batches(0, 10))) == 10
    beton = open_beton(copy)
    of_class = np.flatnonzero(beton.labels == beton.labels[5])
    other = of_class[(of_class.tolist().index(5) + 1) % len(of_class)]
    place = f"sample 5, {beton.size[5]} bytes at offset {beton.offset[5]}, is no whole JPEG"
    assert data.damage.news() == [f"{copy}: {place}; replaced by sample {other}"]
    list(data.batches(10, 20))
    assert data.damage.news() == []


@pytest.mark.timeout(60)
def test_a_class_that_is_damaged_as_a_whole_ends_the_run(copy: Path) -> None:
    """Nothing can stand for it; and looking for it does not go round for ever."""
    beton = open_beton(copy)
    of_class = np.flatnonzero(beton.labels == 3)
    destroy(copy, *of_class.tolist())
    with pytest.raises(DamagedDataError, match=f"all {len(of_class)} samples of class {beton.classes[3]} are damaged"):
        list(TrainData(skipping(copy), world()).batches(0, 10))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_damaged_validation_image_is_left_out_and_told_of(ranks: int, copy: Path) -> None:
    """It is no image that counts; the others count once."""
    destroy(copy, 0, 11, JPEGS - 1)
    data = [ValData(skipping(copy), world(rank, ranks)) for rank in range(ranks)]
    batches = [batch for each in data for batch in each.batches()]
    samples = np.concatenate([b.samples for b in batches])
    assert sorted(samples[samples >= 0].tolist()) == sorted({*range(JPEGS)} - {0, 11, JPEGS - 1})
    news = [line for each in data for line in each.damage.news()]
    assert len(news) == 3
    assert all(line.endswith("is no whole JPEG; left out") for line in news)


def test_a_run_with_damaged_images_says_so_and_scores_the_others(copy: Path, tmp_path: Path) -> None:
    """As a person sees it: what was damaged, in what is printed and in the ledger, and a score at the end."""
    destroy(copy, 7)
    cfg = replace(skipping(copy), epochs=1)
    (tmp_path / "config.yaml").write_text(to_yaml(replace(cfg, log=replace(cfg.log, every_steps=1))))
    command = [sys.executable, "-m", "vit.train", "--config", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    problems = [event["problem"] for event in events if event["event"] == "damaged sample"]
    assert [p.partition("; ")[2].split(" by ")[0] for p in problems] == ["replaced", "left out"]
    assert all("sample 7," in p for p in problems)
    assert all(problem in done.stdout for problem in problems)

    fail = ["--data.on_bad", "fail", "--run-dir", str(tmp_path / "another")]
    done = subprocess.run([*command, *fail], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"vit.train: {copy}: sample 7, .* is no whole JPEG\n", done.stderr)


# ------------------------------------------------------------------------------------------------------ pages' digests


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def smaller_pages(path: Path, page_size: int) -> int:
    """The manifest as if the file had been written in small pages; returns their number."""
    import hashlib

    content = path.read_bytes()
    pages = [hashlib.sha256(content[i : i + page_size]).hexdigest() for i in range(0, len(content), page_size)]
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(manifest | {"page_size": page_size, "pages": pages}))
    return len(pages)


def read_an_epoch(path: Path, ranks: int, rank: int, verify: str, start: int = 0) -> str:
    """What reading the first epoch's steps from `start` says of damage."""
    cfg = skipping(path)
    cfg = replace(cfg, data=replace(cfg.data, verify=verify, on_bad="fail"))
    try:
        list(TrainData(cfg, world(rank, ranks)).batches(start, cfg.steps(1, JPEGS)))
    except DamagedDataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_flipped_bit_is_found_in_the_first_epoch(ranks: int, copy: Path) -> None:
    """By exactly one rank, wherever it is; a flip that decodes to other pixels would pass unseen otherwise."""
    count = smaller_pages(copy, 8192)
    beton = open_beton(copy)
    random = np.random.default_rng(0)
    for sample in random.integers(JPEGS, size=6).tolist():
        offset = int(beton.offset[sample] + beton.size[sample] - 9)
        flip(copy, offset)
        said = list(filter(None, (read_an_epoch(copy, ranks, rank, "first-epoch") for rank in range(ranks))))
        assert sum(f"page {offset // 8192}," in line for line in said) == 1
        flip(copy, offset)
    assert count > 20
    assert not any(read_an_epoch(copy, ranks, rank, "first-epoch") for rank in range(ranks))


def test_what_a_resumed_run_has_not_checked_yet_it_checks(copy: Path) -> None:
    """The place of the check is a function of the step: nothing is left out, and nothing is done twice."""
    count = smaller_pages(copy, 8192)
    cfg = skipping(copy)
    steps = cfg.steps(1, JPEGS)
    last_of_file = open_beton(copy).bytes - 1
    flip(copy, last_of_file - 24 * JPEGS - 30)  # the file's last page but for the tables: due in the last step
    assert read_an_epoch(copy, 1, 0, "first-epoch", start=steps - 1) or count == 0
    assert not read_an_epoch(copy, 1, 0, "never", start=steps - 1)


def test_damage_names_the_page_its_place_and_its_samples(copy: Path) -> None:
    """And what to do."""
    smaller_pages(copy, 8192)
    beton = open_beton(copy)
    page = int(beton.offset[9]) // 8192 + 1
    inside = [
        i for i in range(JPEGS) if beton.offset[i] < (page + 1) * 8192 and beton.offset[i] + beton.size[i] > page * 8192
    ]
    flip(copy, page * 8192)
    with pytest.raises(DamagedDataError) as caught:
        check_pages(beton, range(len(beton.pages)))
    where = f"page {page}, 8,192 bytes at {page * 8192:,} with samples {inside[0]} to {inside[-1]},"
    assert f"{copy}: {where}" in str(caught.value)
    assert "--data.verify never" in str(caught.value)


def test_validation_pages_are_checked_in_the_first_evaluation(betons: Path, tmp_path: Path) -> None:
    """All of them, over the ranks together."""
    path = tmp_path / "val.beton"
    for name in (lambda p: p, manifest_path):
        shutil.copy(name(betons / "val.beton"), name(path))
    smaller_pages(path, 8192)
    cfg = skipping(path)
    cfg = replace(cfg, data=replace(cfg.data, verify="first-epoch", on_bad="fail"))
    data = [ValData(cfg, world(rank, 2)) for rank in range(2)]
    for each in data:
        list(each.batches())
    flip(path, int(open_beton(path).offset[50]))  # a pixel, which no decoder misses
    for each in data:
        list(each.batches())  # the second evaluation checks nothing
    anew = [ValData(cfg, world(rank, 2)) for rank in range(2)]
    said = [line for each in anew if (line := complaint(each))]
    assert len(said) == 1
    assert "page " in said[0]


def complaint(data: ValData) -> str:
    try:
        list(data.batches())
    except DamagedDataError as error:
        return str(error)
    return ""
