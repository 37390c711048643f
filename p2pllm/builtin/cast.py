"""Who and what a story can be about: the word lists, and nothing else.

A name carries its pronoun, so a reader (or a model) can tell "he" from "she" by the name alone.
All lists were written for this project; none is taken from another text.
"""

from typing import Final


def _words(text: str, separator: str = " ") -> tuple[str, ...]:
    return tuple(text.split(separator))


SHE_NAMES: Final = _words(
    "Mia Lily Anna Rosa Ella Nora Ivy Ruby Zoe Emma Lucy Clara Maya Sofia Grace Hana Pia Olive "
    "Daisy Wanda"
)

HE_NAMES: Final = _words(
    "Tom Ben Max Leo Sam Jack Finn Noah Otto Hugo Theo Luca Omar Ravi Milo Dan Pip Oscar Felix "
    "Bruno"
)

# Kinds that may take either pronoun.
KINDS: Final = _words(
    "fox bear rabbit owl mouse cat dog duck frog hedgehog squirrel deer turtle wolf pig goat lamb "
    "pony bee robin badger otter beaver mole lion tiger elephant monkey penguin dragon robot giant "
    "fairy wizard pirate knight farmer baker snail horse bird"
)

SHE_KINDS: Final = ("girl", "queen", "princess")
HE_KINDS: Final = ("boy", "king", "prince")

TRAITS: Final = _words(
    "brave kind shy clever curious gentle happy small little quiet silly proud lazy old young "
    "cheerful sleepy tiny lonely friendly"
)

COLOURS: Final = _words("red blue green yellow golden silver white purple orange pink")

THINGS: Final = _words(
    "kite ball hat drum boat lamp bell book basket flute scarf key ring wagon crown button spoon "
    "ribbon cup coat blanket map whistle doll"
)

# A home, with the words that lead into it.
HOMES: Final = (
    "in the forest",
    "by the sea",
    "on a green hill",
    "by the river",
    "in a small village",
    "on a farm",
    "in the mountains",
    "near a lake",
    "in a big city",
    "in a garden",
    "on an island",
    "in an old castle",
    "in a quiet valley",
    "near a windmill",
)

SPOTS: Final = (
    "under the bed",
    "behind the door",
    "in the tall grass",
    "under a big leaf",
    "behind a rock",
    "near the well",
    "in the barn",
    "beside the bridge",
    "on top of the wall",
    "inside a hollow log",
    "under the old oak tree",
    "by the gate",
    "in the kitchen",
    "between two stones",
)

FOODS: Final = _words(
    "apple pie,loaf of bread,bowl of soup,basket of berries,honey cake,bag of nuts,pot of jam,"
    "plate of cookies,bunch of carrots,round cheese",
    separator=",",
)

TIMES: Final = (
    "One morning",
    "One sunny day",
    "One rainy day",
    "One cold evening",
    "One windy day",
    "One afternoon",
    "One day",
    "One summer day",
    "One winter morning",
)

SYLLABLES: Final = _words(
    "ba be bi bo bu da de di do du fa fi fo ga gi go ka ki ko la le li lo lu ma me mi mo mu na ne "
    "ni no nu pa pe pi po ra re ri ro ru sa se si so ta te ti to tu va ve vi vo za ze zi zo zu"
)

# Asked about, though no story knows them.
PLACES: Final = _words(
    "France,Spain,Japan,Germany,Italy,China,Brazil,Egypt,India,Paris,London,Berlin,the moon,"
    "Peru,Canada,Kenya,Norway,Rome,New York,America",
    separator=",",
)

SUBJECTS: Final = _words(
    "gravity,physics,a computer,the internet,sorting a list,machine learning,music,the sun,"
    "electricity,history,a volcano,quantum physics,money,football,a peer to peer network,math,"
    "chess,the brain,science,a car,TCP,JSON,an engine,politics,cooking,the news",
    separator=",",
)
