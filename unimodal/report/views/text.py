"""Numbers and words as the page has them."""

import math
from typing import Any

from markupsafe import Markup


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant figures without a needless exponent; an en dash for what is missing or NaN."""
    if value is None or not math.isfinite(value):
        return "–" if value is None or math.isnan(value) else "∞" if value > 0 else "−∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    return f"{value:,.{digits}g}".replace("-", "−")


def fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return number(value)


def size_in_bytes(count: float) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def short(value: float) -> float:
    return float(f"{value:.4g}")


def names(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, (tuple, list)):
        return ", ".join("–" if item is None else str(item) for item in value) or "–"
    return str(value)


def printable(value: Any) -> Any:
    """Byte-level models write control characters, NUL and halves of characters, none of which HTML may hold."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(_visible(character) for character in value)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return chr(0x2400 + code)  # Unicode's pictures of the control characters
    return "\ufffd" if 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 else character


def visible_blank(text: str) -> str:
    """Spaces and line ends must be seen where they are the answer."""
    return text.replace("\n", "⏎").replace(" ", "␣") if not text.strip() else text
