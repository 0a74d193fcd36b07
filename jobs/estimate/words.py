"""How estimates are written: no more digits than they are worth."""


def about(seconds: float) -> str:
    """`42 s`, `3:05`, `42 min`, `8 h 11 min`, `4 d 13 h`, `273 d`."""
    if seconds < 99.5:
        return f"{seconds:.{0 if seconds >= 9.95 else 1}f} s"
    whole = round(seconds)
    if whole < 600:
        return f"{whole // 60}:{whole % 60:02d}"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 1440:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h" if hours < 2400 else f"{hours // 24:,} d"


def digits(value: float) -> int:
    """Digits after the point of a number in a table."""
    return 0 if value >= 99.5 else 1 if value >= 0.95 else 2


def amount(value: float) -> str:
    """`3,345`, `11.7`, `0.84`."""
    return f"{value:,.{digits(value)}f}"


def times(ratio: float) -> str:
    """`0.3 times`, `12 times`, `0.0027 times`."""
    return f"{ratio:.{0 if ratio >= 9.95 else 1}f} times" if ratio >= 0.095 else f"{ratio:.2g} times"
