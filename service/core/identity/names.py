"""Names of people and machines: what is one, whoever says it: a users file, a token, a form."""

import re
from typing import Final

# Characters that are letters or marks to Unicode and still show nothing, or a blank: its Default_Ignorable_Code_Point
# beyond the control and format characters that str.isprintable() knows, and the blank Braille pattern.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_visible_name(name: str) -> bool:
    """Tell whether a name is all that one sees of it, so that no two names look alike for an invisible character.

    Refused are an empty name, white space around one, and anywhere in it: control and format characters, line and
    paragraph separators, surrogates, code points without an assigned or public meaning (Unicode categories Cc, Cf, Zl,
    Zp, Cs, Co, Cn), every space but U+0020, and letters and marks that show nothing.
    """
    if not name or not name.isprintable() or name[0] == " " or name[-1] == " ":
        return False
    return name.isascii() or _INVISIBLE.search(name) is None
