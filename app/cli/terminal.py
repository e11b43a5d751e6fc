"""Text on a terminal: what may be printed of data, how wide it is, and whether it may have colours."""

import os
import re
import sys
import unicodedata

# Characters that would steer a terminal or reorder what it shows: controls, the marks of bidirectional text, other
# invisible formats, line separators. The two joiners stay, because emoji and several scripts are written with them.
_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_STEERING_IN_JSON = re.compile(_STEERING.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))  # it may have lines

RESET = "\x1b[0m"
BOLD = "\x1b[1m"
DIM = "\x1b[2m"
RED = "\x1b[31m"
GREEN = "\x1b[32m"
YELLOW = "\x1b[33m"


def plain(text: str) -> str:
    r"""The text with each character that would steer a terminal written as its escape, such as \x1b."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1].replace("\\n", "\\x0a"), text)


def plain_json(body: bytes) -> bytes:
    r"""The same for JSON: such a character, which stands in a string, becomes its escape, such as \u009b."""
    return _STEERING_IN_JSON.sub(_json_escape, body.decode(errors="replace")).encode()


def _json_escape(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def width(text: str) -> int:
    """The columns that the text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.category(character) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def padded(text: str, columns: int) -> str:
    """The text, with blanks behind it up to this width."""
    return text + " " * (columns - width(text))


def cut(text: str, columns: int) -> str:
    """The text, at most this wide; an ellipsis stands for the rest."""
    if width(text) <= columns:
        return text
    taken, room = [], columns - 1
    for character in text:
        room -= _columns(character)
        if room < 0:
            break
        taken.append(character)
    return "".join(taken) + "…"


def has_colours() -> bool:
    """Whether standard output is a terminal, and nobody has asked for no colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str) -> str:
    """The text in a colour, if it is given one."""
    return f"{colour}{text}{RESET}" if colour else text
