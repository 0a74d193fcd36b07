"""Damaged data are reported, replaced or skipped, in the same way for any number of ranks and threads."""

import hashlib
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
from tests.helpers.loading import flip_bit, overwrite, simulated_world, train_stream
from tests.helpers.paths import CHECKOUT
from vit.config.schema import Config, to_yaml
from vit.data.beton import open_beton
from vit.data.damage import check_pages
from vit.data.dataset_manifest import manifest_path
from vit.data.decode import DamagedDataError
from vit.data.loader import TrainData, ValData
from vit.data.order import Order


def damage(path: Path, *samples: int) -> None:
    """Overwrites the start of some JPEGs."""
    beton = open_beton(path)
    for sample in samples:
        overwrite(path, int(beton.offset[sample]), bytes(64))


def skip_config(path: Path, **changes: object) -> Config:
    cfg = replace(small_config(path), global_batch=24, micro_batch=6)
    return replace(cfg, data=replace(cfg.data, on_bad="skip", verify="never", **changes))


def test_a_damaged_image_is_replaced_by_the_next_image_of_its_class(jpegs_copy: Path) -> None:
    """The same replacement for any number of ranks and threads; the labels and all other images stay the same."""
    beton = open_beton(jpegs_copy)
    of_class = np.flatnonzero(beton.labels == beton.labels[20])
    first, second = of_class[-1], of_class[0]  # the last of the class and its replacement, the first of the class
    third = of_class[1]
    damage(jpegs_copy, int(first), int(second))

    cfg = skip_config(jpegs_copy)
    expected = Order(cfg.seed, JPEGS).at(np.arange(24 * 8)).samples
    samples, labels, images = train_stream(cfg, 1, 0, 8)
    assert np.array_equal(samples, np.where(np.isin(expected, [first, second]), third, expected))
    assert np.array_equal(labels.numpy(), beton.labels[expected])
    assert (expected == first).any() and (expected == second).any()
    for ranks, workers, start in ((2, 1, 0), (4, 3, 3), (1, 4, 5)):
        again = train_stream(skip_config(jpegs_copy, workers=workers), ranks, start, 8)
        assert np.array_equal(again[0], samples[24 * start :])
        assert torch.equal(again[1], labels[24 * start :])
        assert torch.equal(again[2], images[24 * start :])


def test_each_damaged_image_is_reported_once(jpegs_copy: Path) -> None:
    """The message names the file, the position and the replacement."""
    damage(jpegs_copy, 5)
    data = TrainData(skip_config(jpegs_copy), simulated_world())
    assert len(list(data.batches(0, 10))) == 10
    beton = open_beton(jpegs_copy)
    of_class = np.flatnonzero(beton.labels == beton.labels[5])
    other = of_class[(of_class.tolist().index(5) + 1) % len(of_class)]
    problem = f"sample 5 ({beton.size[5]} bytes at offset {beton.offset[5]}) is not a complete, valid JPEG"
    assert data.damaged.take_messages() == [f"{jpegs_copy}: {problem}; replaced by sample {other}"]
    list(data.batches(10, 20))
    assert data.damaged.take_messages() == []


@pytest.mark.timeout(60)
def test_a_class_without_an_intact_image_ends_the_run(jpegs_copy: Path) -> None:
    """There is no replacement, and the search for one ends."""
    beton = open_beton(jpegs_copy)
    of_class = np.flatnonzero(beton.labels == 3)
    damage(jpegs_copy, *of_class.tolist())
    with pytest.raises(DamagedDataError, match=f"all {len(of_class)} samples of class {beton.classes[3]} are damaged"):
        list(TrainData(skip_config(jpegs_copy), simulated_world()).batches(0, 10))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_damaged_validation_image_is_skipped_and_reported(ranks: int, jpegs_copy: Path) -> None:
    """All other images count once."""
    damage(jpegs_copy, 0, 11, JPEGS - 1)
    data = [ValData(skip_config(jpegs_copy), simulated_world(rank, ranks)) for rank in range(ranks)]
    batches = [batch for each in data for batch in each.batches()]
    samples = np.concatenate([b.samples for b in batches])
    assert sorted(samples[samples >= 0].tolist()) == sorted({*range(JPEGS)} - {0, 11, JPEGS - 1})
    messages = [message for each in data for message in each.damaged.take_messages()]
    assert len(messages) == 3
    assert all(message.endswith("is not a complete, valid JPEG; skipped") for message in messages)


def test_a_run_with_damaged_images_reports_them_and_finishes(jpegs_copy: Path, tmp_path: Path) -> None:
    """On stdout and in the ledger; with `--data.on_bad fail` the run ends instead, with exit code 2."""
    damage(jpegs_copy, 7)
    cfg = replace(skip_config(jpegs_copy), epochs=1)
    (tmp_path / "config.yaml").write_text(to_yaml(replace(cfg, log=replace(cfg.log, every_steps=1))))
    command = [sys.executable, "-m", "vit.train", "--config", str(tmp_path / "config.yaml"), "--run-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    problems = [event["problem"] for event in events if event["event"] == "damaged sample"]
    assert [p.partition("; ")[2].split(" by ")[0] for p in problems] == ["replaced", "skipped"]
    assert all("sample 7 " in p for p in problems)
    assert all(problem in done.stdout for problem in problems)

    fail = ["--data.on_bad", "fail", "--run-dir", str(tmp_path / "another")]
    done = subprocess.run([*command, *fail], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(rf"vit.train: {jpegs_copy}: sample 7 .* is not a complete, valid JPEG\n", done.stderr)


# ------------------------------------------------------------------------------------------------------ page digests


def use_small_pages(path: Path, page_size: int) -> int:
    """Rewrites the manifest with digests of small pages; returns their number."""
    content = path.read_bytes()
    pages = [hashlib.sha256(content[i : i + page_size]).hexdigest() for i in range(0, len(content), page_size)]
    manifest = json.loads(manifest_path(path).read_text())
    manifest_path(path).write_text(json.dumps(manifest | {"page_size": page_size, "pages": pages}))
    return len(pages)


def read_first_epoch(path: Path, ranks: int, rank: int, verify: str, start: int = 0) -> str:
    """Reads the steps of the first epoch from `start` on; returns the error message, or an empty string."""
    cfg = skip_config(path)
    cfg = replace(cfg, data=replace(cfg.data, verify=verify, on_bad="fail"))
    try:
        list(TrainData(cfg, simulated_world(rank, ranks)).batches(start, cfg.steps(1, JPEGS)))
    except DamagedDataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_flipped_bit_is_found_in_the_first_epoch(
    ranks: int, jpegs_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By exactly one rank.  The flipped bits only change pixels, so that no decoder would detect them."""
    count = use_small_pages(jpegs_copy, 8192)
    beton = open_beton(jpegs_copy)
    random = np.random.default_rng(0)
    for sample in random.integers(JPEGS, size=6).tolist():
        offset = int(beton.offset[sample] + beton.size[sample] - 9)
        flip_bit(jpegs_copy, offset)
        errors = [read_first_epoch(jpegs_copy, ranks, rank, "first-epoch") for rank in range(ranks)]
        assert sum(f"page {offset // 8192} " in error for error in errors) == 1
        flip_bit(jpegs_copy, offset)
    assert count > 20
    capsys.readouterr()
    assert not any(read_first_epoch(jpegs_copy, ranks, rank, "first-epoch") for rank in range(ranks))
    assert capsys.readouterr().out == f"{jpegs_copy.name}: {count:,} pages checked, all digests are right\n"


def test_a_resumed_run_checks_the_pages_that_are_not_checked_yet(jpegs_copy: Path) -> None:
    """The pages to check are a function of the step."""
    use_small_pages(jpegs_copy, 8192)
    cfg = skip_config(jpegs_copy)
    steps = cfg.steps(1, JPEGS)
    last_byte = open_beton(jpegs_copy).bytes - 1
    flip_bit(jpegs_copy, last_byte - 24 * JPEGS - 30)  # in the last page before the allocation table: last step
    assert read_first_epoch(jpegs_copy, 1, 0, "first-epoch", start=steps - 1)
    assert not read_first_epoch(jpegs_copy, 1, 0, "never", start=steps - 1)


def test_the_error_names_the_damaged_page_its_position_and_its_samples(jpegs_copy: Path) -> None:
    """And how to continue."""
    use_small_pages(jpegs_copy, 8192)
    beton = open_beton(jpegs_copy)
    page = int(beton.offset[9]) // 8192 + 1
    inside = [
        i for i in range(JPEGS) if beton.offset[i] < (page + 1) * 8192 and beton.offset[i] + beton.size[i] > page * 8192
    ]
    flip_bit(jpegs_copy, page * 8192)
    with pytest.raises(DamagedDataError) as caught:
        check_pages(beton, range(len(beton.pages)))
    position = (
        f"page {page} (8,192 bytes at offset {page * 8192:,}, samples {inside[0]} to {inside[-1]}) does not match"
    )
    assert f"{jpegs_copy}: {position}" in str(caught.value)
    assert "--data.verify never" in str(caught.value)


def test_validation_pages_are_checked_in_the_first_evaluation(betons: Path, tmp_path: Path) -> None:
    """Each page by one rank, and only in the first evaluation."""
    path = tmp_path / "val.beton"
    for name in (lambda p: p, manifest_path):
        shutil.copy(name(betons / "val.beton"), name(path))
    use_small_pages(path, 8192)
    cfg = skip_config(path)
    cfg = replace(cfg, data=replace(cfg.data, verify="first-epoch", on_bad="fail"))
    data = [ValData(cfg, simulated_world(rank, 2)) for rank in range(2)]
    for each in data:
        list(each.batches())
    flip_bit(path, int(open_beton(path).offset[50]))  # changes a raw pixel, which no decoder detects
    for each in data:
        list(each.batches())  # the second evaluation checks nothing
    reopened = [ValData(cfg, simulated_world(rank, 2)) for rank in range(2)]
    errors = [error for each in reopened if (error := evaluation_error(each))]
    assert len(errors) == 1
    assert "page " in errors[0]


def evaluation_error(data: ValData) -> str:
    try:
        list(data.batches())
    except DamagedDataError as error:
        return str(error)
    return ""
