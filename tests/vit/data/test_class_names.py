"""Which differences between lists of classes are named, and which of a model's classes a data set has."""

import pytest

from vit.config.user_error import UserError
from vit.data.class_names import class_differences, match_classes

WNIDS = [f"n{10_000_000 + i}" for i in range(1000)]
WHERE = ("run", "data.beton")


@pytest.mark.parametrize(
    ("one", "other", "differences"),
    [
        (["ant", "bee"], ["ant", "bee"], ""),
        (
            ["ant", "bee"],
            ["bee", "ant"],
            "class 0 is 'ant' in run but 'bee' in data.beton, class 1 is 'bee' in run but 'ant' in data.beton",
        ),
        (
            ["ant", "bee", "cat", "dog"],
            ["Cat", "ant", "bee", "dog"],
            "class 0 is 'ant' in run but 'Cat' in data.beton, class 1 is 'bee' in run but 'ant' in data.beton, "
            "class 2 is 'cat' in run but 'bee' in data.beton; only run has 'cat'; only data.beton has 'Cat'",
        ),
        (["ant", "bee"], ["ant", "bee", "cat"], "only data.beton has 'cat'; run has 2 classes, data.beton has 3"),
    ],
)
def test_the_first_differences_are_named(one: list[str], other: list[str], differences: str) -> None:
    """By position, and the names that only one side has."""
    assert class_differences(one, other, WHERE) == differences


def test_of_many_differences_only_three_are_named() -> None:
    """The message about 1,000 classes is one line."""
    text = class_differences(WNIDS, [*WNIDS[1:], "n1"], WHERE)
    assert text.count("class ") == 3 and " and 997 more; only run has 'n10000000'; only data.beton has 'n1'" in text


@pytest.mark.parametrize(
    ("model", "data", "how", "logits"),
    [
        (["ant", "bee"], ["ant", "bee"], "order", (0, 1)),
        (["ant", "bee", "cat"], ["cat", "ant"], "name", (2, 0)),
        (["0", "1", "10", "2"], ["10", "2"], "name", (2, 3)),
        (["ant", "bee"], ["1", "0"], "index", (1, 0)),
        (["ant", "bee"], ["000", "001"], "index", (0, 1)),
        (None, ["1", "0"], "index", (1, 0)),
        (None, ["ant", "bee"], "number", (0, 1)),
        (WNIDS, ["0", "10", "999"], "index", (0, 10, 999)),
        (WNIDS, ["n10000999", "n10000000"], "name", (999, 0)),
    ],
)
def test_classes_are_found_by_name_or_else_by_index(
    model: list[str] | None, data: list[str], how: str, logits: tuple[int, ...]
) -> None:
    """Names that are numbers are indices only if the model does not have them as names."""
    match = match_classes(model, len(model) if model else 2, data, WHERE)
    assert (match.how, match.logits) == (how, logits)


@pytest.mark.parametrize(
    ("model", "data", "missing"),
    [
        (
            ["ant", "bee", "cat"],
            ["0", "1"],
            "'0', '1'",
        ),  # two of three: they may be counted from 1, or be other numbers
        (["ant", "bee"], ["1", "2"], "'1', '2'"),
        (["ant", "bee"], ["0", "00"], "'0', '00'"),
        (WNIDS[:999], ["0", "10", "998"], "'0', '10', '998'"),  # a subset of ImageNet has other indices
        (WNIDS[::-1], ["0", "10", "998"], "'0', '10', '998'"),
        (WNIDS, ["0", "1000"], "'0', '1000'"),
        (["ant", "bee", "cat"], ["ant", "Bee"], "'Bee'"),
    ],
)
def test_classes_that_the_model_does_not_have_are_refused(model: list[str], data: list[str], missing: str) -> None:
    """Numbers that may mean something else too."""
    with pytest.raises(UserError, match=rf"^run does not have .* classes of data\.beton: {missing}; write"):
        match_classes(model, len(model), data, WHERE)


def test_a_model_with_two_classes_of_the_same_name_is_matched_only_as_a_whole() -> None:
    """ImageNet has two kinds of "crane"; its WordNet ids differ."""
    model = ["crane", "tench", "crane"]
    assert match_classes(model, 3, model, WHERE).is_identity
    with pytest.raises(UserError, match="run has two classes of the same name"):
        match_classes(model, 3, ["tench"], WHERE)
