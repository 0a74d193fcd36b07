"""Numbers of things in messages: `1 rank`, `2 ranks`."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, in the plural unless the number is 1; thousands have commas.

    `plural` is needed only where it is not the noun and an s, es (class) or ies (entry).
    """
    if number == 1:
        return f"1 {noun}"
    if not plural and noun.endswith(("s", "x", "tch", "sh")):
        plural = f"{noun}es"
    elif not plural and noun.endswith("y") and noun[-2:-1] not in "aeiou":
        plural = f"{noun[:-1]}ies"
    return f"{number:,} {plural or noun + 's'}"
