"""What a column's name says: the words that logs of many industries use for each role."""

from __future__ import annotations

import re


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


def _weighted(**listed: str) -> dict[str, float]:
    """Words by weight: ``_30="a b"`` gives each 3.0."""
    return {word: int(w[1:]) / 10 for w, words in listed.items() for word in words.split()}


WORDS: dict[str, dict[str, float]] = {
    "user": _weighted(
        _30="""user uid customer client visitor fullvisitor member student patient learner reader
        viewer shopper buyer account person subscriber household reviewer player listener driver
        employee kunde benutzer usuario cliente utilisateur""",
        _20="cookie",
        _15="device profile",
        _10="owner",
    ),
    "item": _weighted(
        _30="""item iid sku video movie film product article asin book song track ad adgroup course
        problem question exercise skill goods listing poi venue restaurant recipe game app isbn
        post news drug medication procedure diagnosis offer hotel job creative artikel produkt
        produit producto""",
        _25="stock",
        _20="content artist",
        _15="url",
        _12="page code",
        _08="category",
        _05="brand",
    ),
    "time": _weighted(
        _30="time timestamp ts datetime epoch moment unixtime zeit",
        _25="date created occurred datum fecha",
        _20="when",
        _15="seen day",
        _12="step",
        _10="at order",
        _08="position",
    ),
    "label": _weighted(
        _40="label target",
        _35="click clicked correct",
        _32="purchase purchased bought rating",
        _30="buy stars ordered converted conversion",
        _28="liked",
        _25="like score outcome grade watched engaged interested",
        _22="response recommended played",
        _20="answer rate",
        _15="follow share comment long finish positive",
    ),
    "group": _weighted(
        _30="""session basket invoice impression request pageview visit cart transaction slate
        encounter admission receipt""",
        _25="order",
        _20="search query trip",
        _15="page",
        _12="view",
    ),
    "type": _weighted(
        _25="event action behavior behaviour activity interaction", _20="type kind verb btag"
    ),
    "quantity": _weighted(_30="quantity qty menge", _20="units"),
}
ID_ENDINGS = _words("id no nr code key number hash idx index")
NOT_TIME = _words(
    """duration play stay read spent watch dwell elapsed birth upload release publish published
    register registered signup length cnt count next view"""
)
"""Words of times that are not the event's own."""
AFTER = _words(
    """dwell play stay watch spent scroll read next revenue refund refunded elapsed returned
    completed finish progress"""
)
"""Words of what is only known once the event is over."""
BEHAVIOUR = _words(
    """cnt count counts num ctr cvr popularity views clicks likes sales plays shares comments sold
    purchases orders rank trending play stay progress"""
)
"""Words of figures that sum up behaviour, of all time unless somebody saw to it."""
CATEGORIES = _words("onehot cat category type class segment bucket group level region")
"""Words of numbers that are categories, however many."""


def tokens(name: str) -> list[str]:
    """A name cut into lower-case words: ``InvoiceDate``, ``invoice_date`` -> invoice, date."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    spaced = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1 \2", spaced)
    return [part.lower() for part in re.split(r"[^A-Za-z]+", spaced) if part]


def is_id_name(name: str) -> bool:
    """The name ends as names of ids do."""
    parts = tokens(name)
    return bool(parts) and (parts[-1] in ID_ENDINGS or parts[-1].endswith("id"))


def score(name: str, role: str) -> float:
    """How well a name fits a role: 0 says nothing, about 3 is a plain word for it."""
    parts = tokens(name)
    glued = "".join(parts)
    best = 0.0
    for word, weight in WORDS[role].items():
        if glued == word or any(glued == word + end for end in ID_ENDINGS):
            best = max(best, weight + 1)
        elif word in parts:
            best = max(best, weight + (0.3 if is_id_name(name) and parts[0] == word else 0))
        elif len(word) >= 4 and glued.startswith(word):
            best = max(best, weight - 1)
    return best


def mentions(name: str, words: frozenset[str]) -> bool:
    """The name holds one of the words."""
    return bool(words & set(tokens(name)))


def slug(name: str) -> str:
    """A name that features and data sets may have: lower-case words with ``_``."""
    parts = [
        part
        for part in re.split(r"[^A-Za-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name))
        if part
    ]
    made = "_".join(part.lower() for part in parts) or "column"
    return made if made[0].isalpha() else f"c_{made}"
