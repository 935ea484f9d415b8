"""The one rule for names of people and machines, in users files, tokens, headers and forms."""

import re
from typing import Final

# Characters that are letters or marks to Unicode and still show nothing, or a blank: its Default_Ignorable_Code_Point
# beyond the control and format characters that str.isprintable() knows, and the blank Braille pattern.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_visible_name(name: str) -> bool:
    """Tell whether every character of a name can be seen, so that no two names differ in an invisible character only.

    Not accepted are an empty name, white space around a name, and anywhere in it: control and format characters, line
    and paragraph separators, surrogates, private and unassigned code points (Unicode categories Cc, Cf, Zl, Zp, Cs, Co,
    Cn), every space except U+0020, and letters and marks that are displayed as nothing.
    """
    if not name or not name.isprintable() or name[0] == " " or name[-1] == " ":
        return False
    return name.isascii() or _INVISIBLE.search(name) is None
