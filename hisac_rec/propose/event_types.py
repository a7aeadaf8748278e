"""Columns that say what kind of event a row is, and which kinds are a success."""

from __future__ import annotations

from hisac_rec.propose import names
from hisac_rec.propose.choice import named
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.files import RawTable

STRONG = (
    ("purchase", "buy", "bought", "order", "transaction", "checkout", "paid", "payment", "convert"),
    ("cart", "addtocart", "add_to_cart", "add-to-cart", "basket"),
    ("fav", "favorite", "favourite", "like", "liked", "wishlist", "save", "share", "follow"),
    ("click", "clicked", "open", "read", "play", "watch", "complete", "finish"),
)
"""Kinds of success, the strongest first."""
WEAK = ("view", "pv", "pageview", "page_view", "detail", "impression", "impress", "show", "shown",
        "expose", "exposure", "display", "seen", "skip", "browse")  # fmt: skip
SHOWN = ("impression", "impress", "show", "shown", "expose", "exposure", "display", "skip")
"""Types of events in which nobody did anything."""
MAX_TYPES = 50


def find_type_column(
    raw: RawTable,
    facts: dict[str, Facts],
    option: str | None,
    busy: set[str],
    *,
    explicit: bool,
) -> str | None:
    """The column that says what kind of event a row is; None: there is none.

    Args:
        raw: the raw files, for messages.
        facts: their columns.
        option: ``--type``.
        busy: columns with another role.
        explicit: ``--positive`` is given, so types need not be known ones.

    Raises:
        UserError: the option's column is not there.
    """
    if option is not None:
        return named(raw, "--type", option, facts)
    ranked = []
    for name, fact in facts.items():
        if (
            name in busy
            or not fact.is_text
            or not 2 <= fact.distinct <= MAX_TYPES
            or fact.is_yes_no
        ):
            continue
        known = sum(_known(value) for value in fact.values)
        points = names.score(name, "type") * (0.5 if not known else 1) + 2.5 * known / fact.distinct
        if points >= 2.5 and (known or explicit):
            ranked.append((points, name))
    return max(ranked)[1] if ranked else None


def _known(value: str) -> bool:
    return strength(value) < len(STRONG) or folded_type(value) in WEAK


def folded_type(value: str) -> str:
    """A type as ``WEAK`` and ``SHOWN`` have it."""
    return str(value).strip().lower().replace(" ", "_")


def strength(value: str) -> int:
    """Rank of a type among the kinds of success; their number where it is none."""
    words = set(names.tokens(str(value))) | {folded_type(value)}
    if "remove" in words or "cancel" in words or "return" in words:
        return len(STRONG)
    for rank, kinds in enumerate(STRONG):
        if words & set(kinds):
            return rank
    return len(STRONG)


def has_success(fact: Facts) -> bool:
    """Some of the types are a success."""
    return any(strength(value) < len(STRONG) for value in fact.values)
