"""What a command prints about a file that it has written or described."""

from pathlib import Path

from vit.config.paths import printable
from vit.data.dataset_manifest import DatasetManifest, manifest_path
from vit.run.counts import counted

_SHOWN = 3


def summarize(verb: str, out: Path, manifest: DatasetManifest, seconds: float) -> str:
    """Counts, sizes, what was left out, and what to do next; `verb` is what the command did to the file."""
    image, left_out, empty = manifest.image, manifest.left_out, manifest.empty_classes
    sizes = f"{image.min_width} to {image.max_width} x {image.min_height} to {image.max_height} pixels"
    if image.min_width == image.max_width and image.min_height == image.max_height:
        sizes = f"{image.max_width} x {image.max_height} pixels"
    classes = len(manifest.classes)
    more = f"  {image.copied:,} JPEGs copied unchanged\n" if image.copied else ""
    if manifest.defects:
        kinds = ", ".join(f"{kind} ({counted(count, 'image')})" for kind, count in manifest.defects.items())
        more += f"  harmless defects: {kinds}\n"
    if left_out:
        more += (
            f"  {counted(len(left_out), 'image')} left out; the first is {printable(': '.join(left_out[0].values()))}\n"
        )
    for reason, found in manifest.ignored.items():
        shown = found["examples"][:_SHOWN]
        names = printable(", ".join(shown)) + (", …" if found["count"] > len(shown) else "")
        more += f"  ignored: {found['count']:,} {reason}: {names}\n"
    if empty:
        names = printable(", ".join(empty[:_SHOWN])) + (
            f" and {len(empty) - _SHOWN:,} more" if len(empty) > _SHOWN else ""
        )
        more += f"  no samples in {len(empty):,} of the classes, which training never sees: {names}\n"
    if classes == 1:
        more += "  only one class, so there is nothing to learn; give the folder that has one subfolder per class\n"
    smallest, largest = min(manifest.histogram), max(manifest.histogram)
    sizes_of_classes = (f"{smallest:,} to " if smallest < largest else "") + counted(largest, "sample")
    megabytes = f"{manifest.bytes / 1e6:,.1f} MB"
    return (
        f"{verb} {printable(out)}: {counted(manifest.samples, 'sample')}, {sizes}, {image.mode}, {megabytes}\n"
        f"  {counted(classes, 'class')} of {sizes_of_classes}\n{more}"
        f"  in {seconds:.1f} s; manifest: {printable(manifest_path(out))}\n"
        f"next: set data.train or data.val to this file in the config of a run, and model.num_classes to {classes}"
    )
