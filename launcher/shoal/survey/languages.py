"""Which language a text is written in, as far as that can be told: py3langid, whose confidence is calibrated by length."""

from functools import lru_cache
from typing import Any

UNKNOWN = "und"
"""ISO 639's word for a language that is not determined; code, numbers and a few words all end here."""
CONFIDENCE = 0.7
"""Below it a text has no language: `Kindergarten Teacher` reads as German with 0.56, `Guten Morgen` with 0.9."""
CHARACTERS = 1000
"""Of a text that are looked at."""


def language(text: str) -> str:
    """An ISO 639 code, or UNKNOWN."""
    code, confidence = _identifier().classify(text[:CHARACTERS])
    return code if confidence >= CONFIDENCE and code != "zxx" else UNKNOWN


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
