"""The worst mistakes of an evaluation, as pictures in the page."""

import base64
import io

from jobs.page.elements import Html, element
from jobs.page.run_data import SavedEvaluation
from jobs.page.scales import percent
from vit.run.evaluation_file import Mistake

SHOWN = 24
LARGE_BYTES = 12_000  # larger pictures are embedded as JPEG files of the same size in pixels


def gallery(saved: SavedEvaluation) -> Html | None:
    """None if the evaluation has no mistakes."""
    found = saved.evaluation
    names = [str(name or found.classes[i]) for i, name in enumerate(found.names)]
    cards = [_card(saved, mistake, names) for mistake in found.mistakes[:SHOWN]]
    if not cards:
        return None
    return element(
        "div",
        element("h3", "Worst mistakes"),
        element("p", "With the probability of the wrong class, and that of the right one.", class_="note"),
        element("div", *cards, class_="gallery"),
        class_="part",
    )


def _card(saved: SavedEvaluation, mistake: Mistake, names: list[str]) -> Html:
    source = _embedded(saved, mistake)
    predicted, true = names[mistake.predicted], names[mistake.true]
    alt = f"an image of {true} that was taken for {predicted}"
    return element(
        "figure",
        element("img", src=source, alt=alt) if source else element("div", "no picture", class_="missing"),
        element(
            "figcaption",
            element("span", predicted, " ", element("b", percent(mistake.probability)), class_="wrong"),
            element("span", true, " ", element("b", percent(mistake.true_probability)), class_="right"),
            element("span", f"image {mistake.sample}", class_="sample"),
        ),
    )


def _embedded(saved: SavedEvaluation, mistake: Mistake) -> str:
    """The picture as a URL; empty if it cannot be read."""
    from PIL import Image  # not at the top: it is rarely needed

    try:
        content, kind = (saved.folder / mistake.file).read_bytes(), "png"
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if len(content) > LARGE_BYTES:
                out = io.BytesIO()
                image.convert("RGB").save(out, "JPEG", quality=80)
                content, kind = out.getvalue(), "jpeg"
    except (OSError, ValueError, SyntaxError):  # Pillow raises all of them for damaged files
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
