"""What the model gets wrong: scores, confusion matrix, accuracy of each class, the worst mistakes as pictures."""

from collections.abc import Sequence
from pathlib import Path

from jobs.page.confusion import FEW_CLASSES, matrix_picture, matrix_table
from jobs.page.elements import Html, element
from jobs.page.mistakes import gallery
from jobs.page.run_data import RunData, SavedEvaluation
from jobs.page.scales import number, percent
from vit.run.counts import counted
from vit.run.evaluation_file import Evaluation

PAIRS, CLASSES = 12, 20  # confused pairs, and classes if there are many


def evaluation_section(run: RunData) -> Html | None:
    """The newest evaluation in full (of the EMA, if both were saved), and the scores of all."""
    if not run.evaluations:
        return None
    first, *others = ordered(run.evaluations)
    found = first.evaluation
    return element(
        "section",
        element("h2", "Evaluation"),
        element("p", _describe(found), class_="lead"),
        _scores([first, *others]) if others else None,
        element(
            "div",
            element("div", element("h3", "Confusion matrix"), _matrix(found)),
            element("div", element("h3", "Accuracy by class"), _classes(found)),
            class_="two",
        )
        if found.images
        else None,
        element("div", element("h3", "Most confused"), _pairs(found), class_="part") if _pairs(found) else None,
        gallery(first),
        id="evaluation",
    )


def ordered(evaluations: Sequence[SavedEvaluation]) -> list[SavedEvaluation]:
    """The newest step first; at the same step the EMA first."""
    return sorted(evaluations, key=lambda e: (-e.evaluation.step, e.evaluation.weights != "ema", e.evaluation.data))


def class_name(found: Evaluation, index: int) -> str:
    """The readable name of a class, or its identifier."""
    return str(found.names[index] or found.classes[index])


def _describe(found: Evaluation) -> str:
    weights = "EMA of the weights" if found.weights == "ema" else "weights"
    parts = [f"{percent(found.top1, 2)} top-1"]
    parts += [f"{percent(found.top5, 2)} top-5"] if found.top5 is not None else []
    parts += [f"loss {number(found.loss)}"] if found.loss is not None else []
    text = f"{', '.join(parts)} on {counted(found.images, 'image')} of {found.data}: {weights} of step {found.step:,}."
    if found.limit:
        text += f" Only the first {found.limit:,} images were scored, as data.limit says."
    if found.skipped:
        verb = "was" if found.skipped == 1 else "were"
        text += f" {counted(found.skipped, 'damaged image')} {verb} left out."
    return text


def _scores(evaluations: Sequence[SavedEvaluation]) -> Html:
    rows = []
    for saved in evaluations:
        found = saved.evaluation
        cells = (
            found.weights,
            f"{found.step:,}",
            f"{found.images:,}",
            percent(found.top1, 2),
            percent(found.top5, 2) if found.top5 is not None else "–",
            number(found.loss) if found.loss is not None else "–",
        )
        name = "/".join(Path(found.data).parts[-2:])
        row = [element("td", name, class_="text", title=found.data), *(element("td", cell) for cell in cells)]
        rows.append(element("tr", *row))
    heads = ("data set", "weights", "step", "images", "top-1", "top-5", "loss")
    head = element("thead", element("tr", *(element("th", text) for text in heads)))
    return element("div", element("table", head, element("tbody", *rows), class_="numbers"), class_="scroll part")


def _matrix(found: Evaluation) -> Html:
    names = [class_name(found, i) for i in range(len(found.classes))]
    if len(names) <= FEW_CLASSES:
        return matrix_table(found, names)
    return matrix_picture(found)


def _classes(found: Evaluation) -> Html:
    """A bar for each class, the worst first; of many classes the worst ones, and the others folded."""
    known = [(share, i) for i, share in enumerate(found.accuracy_per_class) if share is not None]
    rows = [_class_row(found, i, share) for share, i in sorted(known)]
    if len(rows) <= FEW_CLASSES:
        return element("div", *rows, class_="bars-list")
    folded = element(
        "details", element("summary", f"All {len(rows):,} classes"), element("div", *rows, class_="bars-list")
    )
    note = element("p", f"The {CLASSES} worst of {len(rows):,}.", class_="note")
    return element("div", note, element("div", *rows[:CLASSES], class_="bars-list"), folded)


def _class_row(found: Evaluation, i: int, share: float) -> Html:
    images = found.images_per_class[i]
    return element(
        "div",
        element("span", class_name(found, i), class_="name"),
        element("span", element("i", style=f"width:{100 * share:.1f}%"), class_="bar"),
        element("span", percent(share), class_="value", title=f"{found.correct_per_class[i]:,} of {images:,}"),
    )


def _pairs(found: Evaluation) -> Html | None:
    pairs = found.most_confused(PAIRS)
    if not pairs:
        return None
    rows = [
        element(
            "tr",
            element("td", class_name(found, pair.true), class_="text"),
            element("td", class_name(found, pair.predicted), class_="text"),
            element("td", f"{pair.images:,}"),
            element("td", percent(pair.share)),
        )
        for pair in pairs
    ]
    heads = (("true class", "text"), ("taken for", "text"), ("images", None), ("of its class", None))
    head = element("thead", element("tr", *(element("th", text, class_=kind) for text, kind in heads)))
    return element("div", element("table", head, element("tbody", *rows), class_="numbers"), class_="scroll pairs")
