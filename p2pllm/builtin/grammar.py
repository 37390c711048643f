"""A seeded grammar of little stories.

A :class:`Story` fixes everything that has to stay the same from its first sentence to its last
(names, kinds, pronouns, the object, the places); :func:`tell` then chooses among the plot's
wordings. What stays fixed is what makes a story coherent, and what a model has to learn to carry.

Every function takes the :class:`random.Random` it draws from, so one seed gives one text in every
process, whatever the hash seed.
"""

import random
from dataclasses import dataclass

from p2pllm.builtin import cast
from p2pllm.builtin.plots import OPENINGS, PLOTS, Plot

# One story in so many has an invented name or kind ("Lunomi"), so that copying from the request
# is learned as such and not as a list of known words.
INVENTED_NAME_SHARE = 0.08
INVENTED_KIND_SHARE = 0.04

_OBJECT_OF = {"he": "him", "she": "her"}
_POSSESSIVE_OF = {"he": "his", "she": "her"}


@dataclass(frozen=True, slots=True)
class Character:
    """Someone in a story.

    Attributes:
        name: As in "Mia".
        kind: As in "fox".
        trait: As in "brave".
        pronoun: "he" or "she".
    """

    name: str
    kind: str
    trait: str
    pronoun: str


@dataclass(frozen=True, slots=True)
class Story:
    """All that a story keeps constant; ``slots`` are ready for ``str.format_map``."""

    plot: Plot
    hero: Character
    helper: Character
    slots: dict[str, str]


def with_article(words: str) -> str:
    """Put "a" or "an" before ``words``.

    >>> with_article("old owl")
    'an old owl'
    """
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def invented_word(source: random.Random) -> str:
    """Return a lower-case word of two or three syllables, such as "lunomi"."""
    return "".join(source.choice(cast.SYLLABLES) for _ in range(source.choice((2, 2, 3))))


def draw_character(source: random.Random) -> Character:
    """Draw someone; the pronoun fits both the name and the kind."""
    if source.random() < INVENTED_NAME_SHARE:
        name = invented_word(source).capitalize()
        # The last letter decides, so that an unseen name has a pronoun one can know.
        pronoun = "she" if name[-1] in "aei" else "he"
    else:
        pronoun = source.choice(("he", "she"))
        name = source.choice(cast.HE_NAMES if pronoun == "he" else cast.SHE_NAMES)
    if source.random() < INVENTED_KIND_SHARE:
        kind = invented_word(source)
    else:
        own_kinds = cast.HE_KINDS if pronoun == "he" else cast.SHE_KINDS
        # The first kind of each is a child, who is met more often than a king.
        kind = source.choice((*cast.KINDS, *own_kinds, *own_kinds[:1] * 4))
    return Character(name, kind, source.choice(cast.TRAITS), pronoun)


def draw_story(source: random.Random) -> Story:
    """Draw a plot and everything that stays constant in it."""
    plot = source.choice(PLOTS)
    hero = draw_character(source)
    helper = draw_character(source)
    while helper.name == hero.name or helper.kind == hero.kind:
        helper = draw_character(source)
    spots = source.sample(cast.SPOTS, 3)
    food = source.choice(cast.FOODS)
    slots = {
        "hero": hero.name,
        "kind": hero.kind,
        "trait": hero.trait,
        "a_kind": with_article(f"{hero.trait} {hero.kind}"),
        "he": hero.pronoun,
        "him": _OBJECT_OF[hero.pronoun],
        "his": _POSSESSIVE_OF[hero.pronoun],
        "He": hero.pronoun.capitalize(),
        "His": _POSSESSIVE_OF[hero.pronoun].capitalize(),
        "helper": helper.name,
        "friend": helper.kind,
        "a_friend": with_article(f"{helper.trait} {helper.kind}"),
        "an_friend": with_article(helper.kind),
        "her": _OBJECT_OF[helper.pronoun],
        "thing": source.choice(cast.THINGS),
        "colour": source.choice(cast.COLOURS),
        "home": source.choice(cast.HOMES),
        "spot1": spots[0],
        "spot2": spots[1],
        "spot3": spots[2],
        "food": food,
        "a_food": with_article(food),
        "when": source.choice(cast.TIMES),
    }
    for name, words in source.choice(plot.details).items():
        slots[name] = words.format_map(slots)
    return Story(plot, hero, helper, slots)


def fill(template: str, story: Story) -> str:
    """Fill a template's slots and mend its articles ("a owl" becomes "an owl")."""
    words = template.format_map(story.slots).split(" ")
    for position in range(len(words) - 1):
        if words[position] == "a" and words[position + 1][0] in "aeiou":
            words[position] = "an"
    return " ".join(words)


def tell(story: Story, source: random.Random) -> str:
    """Tell a story, in one paragraph of about 60 to 130 words."""
    told = [fill(source.choice(OPENINGS), story)]
    when_is_told = False
    for scene in story.plot.scenes:
        wording = source.choice(scene)
        # "One day" opens one scene of a story, not two.
        if when_is_told:
            wording = source.choice([each for each in scene if "{when}" not in each])
        when_is_told = when_is_told or "{when}" in wording
        if wording:
            told.append(fill(wording, story))
    told.append(fill(source.choice(story.plot.morals), story))
    return " ".join(told)


def story_text(source: random.Random) -> str:
    """Draw and tell a story."""
    return tell(draw_story(source), source)
