"""A confusion matrix: a table of few classes, a picture of many."""

import base64
import struct
import zlib
from collections.abc import Sequence

from jobs.page.elements import Html, element
from jobs.page.scales import percent
from vit.run.evaluation_file import Evaluation

FEW_CLASSES = 20
MOST_SQUARES = 250  # along each side of a picture
BLUE = (68, 119, 170)


def matrix_table(found: Evaluation, names: Sequence[str]) -> Html:
    """A row for each true class; the share of its images that were taken for each class is the shade."""
    totals, rows = found.images_per_class, []
    for true, counts in enumerate(found.matrix()):
        cells = []
        for predicted, images in enumerate(counts):
            share = images / totals[true] if totals[true] else 0.0
            text = f"{names[true]} → {names[predicted]}: {images:,} of {totals[true]:,} ({percent(share)})"
            label = "" if not images else "<1" if share < 0.01 else f"{100 * share:.0f}"
            dark = " dark" if share > 0.55 else ""
            style = f"--share:{shade(share):.3f}" if images else None
            kind = ("diagonal" if true == predicted else "") + dark
            cells.append(element("td", label, style=style, class_=kind.strip() or None, title=text))
        rows.append(element("tr", element("th", names[true]), *cells))
    head = element("tr", element("th"), *(element("th", element("span", name)) for name in names))
    table = element("table", element("thead", head), element("tbody", *rows), class_="confusion")
    note = element("p", "Row: true class. Column: predicted class. Percent of the row.", class_="note")
    return element("div", element("div", table, class_="scroll"), note)


def shade(share: float) -> float:
    """How dark a share is drawn: rare confusions must be seen beside a diagonal of 90 %."""
    return share**0.5 if share > 0 else 0.0


def matrix_picture(found: Evaluation) -> Html:
    """A square for each pair of classes, or of groups of neighboring classes; it shows the largest share in it."""
    classes, totals = len(found.classes), found.images_per_class
    group = -(-classes // MOST_SQUARES)
    size = -(-classes // group)
    pixels = [bytearray(size) for _ in range(size)]
    for true, predicted, images in found.confusion:
        row, column = pixels[true // group], predicted // group
        row[column] = max(row[column], round(255 * max(0.1, shade(images / totals[true]))))
    source = "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
    note = f"Row: true class. Column: predicted class, of {classes:,} in the order of the data set. "
    note += f"Each square is {group} × {group} classes. " if group > 1 else ""
    picture = element("img", src=source, alt="confusion matrix", class_="matrix", width=size, height=size)
    return element("div", picture, element("p", f"{note}Darker: more of the row.", class_="note"))


def png(alphas: Sequence[bytes | bytearray]) -> bytes:
    """A picture in one color, of which each pixel has an opacity of 0 to 255."""
    height, width = len(alphas), len(alphas[0])
    palette = bytes(BLUE) * 256  # an index is its own opacity

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = zlib.compress(b"".join(b"\0" + bytes(line) for line in alphas), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + chunk(b"tRNS", bytes(range(256)))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
