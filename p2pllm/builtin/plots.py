"""What can happen in a story: ten plots, each a list of scenes.

A plot is data. Every scene is a tuple of alternatives, of which one is told; an empty alternative
means that the scene may be left out. ``details`` are rows of words that belong together (how
one fails at swimming is not how one fails at singing); one row is drawn per story. Slots in
braces are filled by :mod:`p2pllm.builtin.grammar`:

=================  ================================================
slot               filled with
=================  ================================================
hero, helper       the two names
kind, friend       the two kinds ("fox", "owl")
a_kind, a_friend   the same with a trait and an article
he him his         the hero's pronouns; ``He`` ``His`` capitalised
her                the helper's pronoun, as an object
thing, colour      an object and its colour
home, spot1..3     where the hero lives; three different places
food, when         something to eat; an opening such as "One day"
=================  ================================================
"""

from dataclasses import dataclass, field
from typing import Final

Scene = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """One kind of story.

    Attributes:
        name: A short handle, unique among the plots.
        requests: Ways to ask for this plot after "a story about"; may use slots.
        scenes: What is told after the opening, in order, one alternative of each.
        morals: Last sentences; one is told.
        question: Something a listener may ask afterwards.
        answer: What the storyteller then says.
        details: Rows of slot values that belong together; one row is drawn per story.
    """

    name: str
    requests: tuple[str, ...]
    scenes: tuple[Scene, ...]
    morals: tuple[str, ...]
    question: str
    answer: str
    details: tuple[dict[str, str], ...] = field(default=({},))


OPENINGS: Final[Scene] = (
    "Once upon a time, there was {a_kind} named {hero}. {He} lived {home}.",
    "Once upon a time, {a_kind} named {hero} lived {home}.",
    "Once upon a time there was {a_kind} named {hero} who lived {home}.",
    "There once was {a_kind} named {hero}. {His} home was {home}.",
    "Long ago, {a_kind} named {hero} lived {home}.",
    "{hero} was {a_kind} who lived {home}.",
)

MEETINGS: Final[Scene] = (
    "Then {helper} the {friend} came by.",
    "Just then, {helper} the {friend} walked past.",
    "Soon {he} met {a_friend} named {helper}.",
    "After a while, {a_friend} named {helper} came along.",
)

LOST: Final = Plot(
    name="lost",
    requests=(
        "{hero} and a lost {thing}",
        "a lost {thing}",
        "a {kind} who lost a {thing}",
        "a {kind} and a {colour} {thing}",
        "a {colour} {thing}",
        "a {thing}",
    ),
    scenes=(
        (
            "{hero} had a {colour} {thing} and loved it very much.",
            "{His} favorite toy was a {colour} {thing}.",
            "{He} had a {colour} {thing} that shone in the sun.",
        ),
        (
            "{when}, the {thing} was gone.",
            "{when}, {hero} could not find the {thing}.",
        ),
        (
            "{He} looked {spot1}, but it was not there.",
            "{hero} looked {spot1} and found only dust.",
        ),
        ("{He} looked {spot2}, but the {thing} was not there.", "{He} looked {spot2} too.", ""),
        ("{hero} sat down and began to cry.", "{hero} felt very sad."),
        MEETINGS,
        (
            '"Why are you sad?" asked {helper}. "I lost my {thing}," said {hero}.',
            '"What is wrong?" asked {helper}. "My {colour} {thing} is gone," said {hero}.',
        ),
        (
            '"Let us look together," said {helper}.',
            '"Do not worry, I will help you," said {helper}.',
        ),
        (
            "They looked {spot3}, and there was the {colour} {thing}!",
            "At last, they found the {thing} {spot3}.",
        ),
        (
            '"Thank you, {helper}!" said {hero}.',
            "{hero} gave {helper} a big hug.",
            "{hero} laughed and danced with {helper}.",
        ),
    ),
    morals=(
        "From that day on, {hero} and {helper} were best friends.",
        "{hero} learned that a good friend makes every search easy.",
        "They played with the {thing} until the stars came out.",
    ),
    question="What did {hero} lose?",
    answer="{hero} lost a {colour} {thing}.",
)

SKILL: Final = Plot(
    name="skill",
    requests=(
        "a {kind} who learns to {skill}",
        "a {kind} who wants to {skill}",
        "{hero} learning to {skill}",
        "learning something new",
        "learning to {skill}",
    ),
    details=(
        {"skill": "swim", "failure": "sank like a stone", "advice": "Kick your legs slowly"},
        {"skill": "sing", "failure": "made a terrible noise", "advice": "Take a deep breath"},
        {"skill": "dance", "failure": "fell on the floor", "advice": "Listen to the music"},
        {
            "skill": "read",
            "failure": "mixed up all the letters",
            "advice": "Read one word at a time",
        },
        {"skill": "paint", "failure": "spilled the paint", "advice": "Hold the brush softly"},
        {"skill": "climb", "failure": "slid down again", "advice": "Look for strong branches"},
        {"skill": "whistle", "failure": "blew only air", "advice": "Make your lips round"},
        {"skill": "skate", "failure": "slipped on the ice", "advice": "Bend your knees"},
        {"skill": "bake", "failure": "burned the cake", "advice": "Watch the oven"},
        {"skill": "juggle", "failure": "dropped every ball", "advice": "Start with two balls"},
    ),
    scenes=(
        (
            "More than anything, {hero} wanted to {skill}.",
            "{hero} had one big wish: {he} wanted to {skill}.",
        ),
        (
            "{when}, {he} tried, but {he} {failure}.",
            "{when}, {hero} tried to {skill}, but {he} {failure}.",
        ),
        (
            "{He} tried again, and again {he} {failure}.",
            "{He} tried once more, but it did not work.",
            "",
        ),
        ('"I will never learn it," said {hero}.', '"It is too hard for me," said {hero}.'),
        MEETINGS,
        (
            '"I can show you how to {skill}," said {helper}. "{advice}."',
            '"Try it this way," said {helper}. "{advice}."',
        ),
        (
            "They practiced every day.",
            "They practiced from morning to night.",
            "{hero} listened well and tried again.",
        ),
        (
            "At last, {hero} could {skill}!",
            "One week later, {hero} could {skill} better than anyone.",
        ),
        (
            '"Look at me!" said {hero}.',
            "{helper} clapped and smiled.",
            '"I knew you could do it!" said {helper}.',
        ),
    ),
    morals=(
        "{hero} learned that practice makes hard things easy.",
        "After that, {hero} never gave up too soon.",
        "And {hero} was proud and happy all day long.",
    ),
    question="What did {hero} learn?",
    answer="{hero} learned to {skill}.",
)

FEAR: Final = Plot(
    name="fear",
    requests=(
        "a {kind} who is afraid of {fear}",
        "a {kind} who was scared of {fear}",
        "{hero} and {fear}",
        "being afraid",
        "being brave",
    ),
    details=(
        {
            "fear": "the dark",
            "when": "One evening",
            "sign": "the sun went down",
            "truth": "The dark is only the night resting",
        },
        {
            "fear": "thunder",
            "when": "One rainy day",
            "sign": "the sky rumbled",
            "truth": "Thunder is only the clouds singing",
        },
        {
            "fear": "the wind",
            "sign": "the trees began to shake",
            "truth": "The wind only wants to play",
        },
        {
            "fear": "deep water",
            "sign": "{he} came to the pond",
            "truth": "Water holds you if you trust it",
        },
        {
            "fear": "the big cave",
            "sign": "{he} passed the cave",
            "truth": "The cave is only a quiet room",
        },
        {
            "fear": "shadows",
            "when": "One quiet night",
            "sign": "the moon came up",
            "truth": "A shadow is only light taking a nap",
        },
    ),
    scenes=(
        (
            "But {hero} was afraid of {fear}.",
            "{He} was not afraid of much, but {he} was afraid of {fear}.",
        ),
        (
            "{when}, {sign}, and {hero} hid {spot1}.",
            "{when}, {sign}, and {hero} began to shake. {He} hid {spot1}.",
        ),
        ("{His} heart went bump, bump, bump.", "{He} closed {his} eyes and did not move.", ""),
        MEETINGS,
        (
            '"Why are you hiding?" asked {helper}. "I am afraid of {fear}," said {hero}.',
            '"Are you all right?" asked {helper}. "No, I am scared," said {hero}.',
        ),
        (
            '"{truth}," said {helper}. "Come, hold my hand."',
            '"Do not be afraid," said {helper}. "{truth}."',
        ),
        (
            "{hero} took a deep breath and came out.",
            "Slowly, {hero} opened {his} eyes and looked around.",
        ),
        (
            "It was not so bad after all.",
            "Together they sang a small song.",
            "Nothing bad happened.",
        ),
        ('"I did it!" said {hero}.', "{hero} began to laugh.", ""),
    ),
    morals=(
        "From then on, {hero} was not afraid of {fear} anymore.",
        "{hero} learned that being brave is easier with a friend.",
        "That night, {hero} slept well and had sweet dreams.",
    ),
    question="What was {hero} afraid of?",
    answer="{hero} was afraid of {fear}.",
)

QUARREL: Final = Plot(
    name="quarrel",
    requests=(
        "two friends who share a {thing}",
        "sharing",
        "{hero} and {helper} who fight over a {thing}",
        "a {kind} and {an_friend} who fight",
    ),
    scenes=(
        (
            "{His} best friend was {a_friend} named {helper}.",
            "Next door lived {a_friend} named {helper}.",
        ),
        (
            "{when}, they found a {colour} {thing} {spot1}.",
            "{when}, they saw a {colour} {thing} {spot1}.",
        ),
        (
            '"It is mine!" said {hero}. "No, it is mine!" said {helper}.',
            '"I saw it first!" said {hero}. "No, I did!" said {helper}.',
        ),
        (
            "They pulled and pulled, and the {thing} broke in two.",
            "They both pulled hard, and then the {thing} broke.",
        ),
        ("Nobody said a word.", "Both of them were very sad.", ""),
        (
            '"I am sorry," said {hero}. "I am sorry too," said {helper}.',
            '"I was not nice," said {hero}. "Please forgive me."',
        ),
        (
            "They sat down and fixed the {thing} together.",
            "With some glue and some string, they fixed the {thing}.",
        ),
        (
            "{hero} played with it in the morning, and {helper} played with it in the evening.",
            "Then they took turns, and it was twice the fun.",
        ),
    ),
    morals=(
        "They learned that sharing is better than fighting.",
        "After that, {hero} and {helper} shared everything.",
        "And the two friends never fought about a {thing} again.",
    ),
    question="What did they find?",
    answer="They found a {colour} {thing}.",
)

RESCUE: Final = Plot(
    name="rescue",
    requests=(
        "a {kind} who helps {an_friend}",
        "{hero} who saves {an_friend}",
        "helping others",
        "kindness",
        "a {kind} and {an_friend} who is stuck",
    ),
    details=(
        {"trap": "in the mud", "tool": "a long branch"},
        {"trap": "in a deep hole", "tool": "a strong rope"},
        {"trap": "in a net", "tool": "a sharp stone"},
        {"trap": "up in a tree", "tool": "a tall ladder"},
        {"trap": "under a log", "tool": "a thick stick"},
        {"trap": "on thin ice", "tool": "a long rope"},
    ),
    scenes=(
        (
            "{when}, {hero} went for a walk.",
            "{when}, {he} was on {his} way home.",
            "{when}, {hero} heard a small voice.",
        ),
        (
            '"Help! Help!" someone called. It was {a_friend} named {helper}, stuck {trap}.',
            "There {he} saw {a_friend} named {helper}, who was stuck {trap}.",
        ),
        ('"I will help you," said {hero}.', '"Do not be afraid," said {hero}. "I am here."'),
        (
            "{He} pulled with all {his} might, but {helper} was still stuck.",
            "{He} pulled and pulled, but it did not work.",
        ),
        ("Then {hero} had a good idea.", "{hero} thought for a while."),
        ("{He} ran home and came back with {tool}.", "{He} found {tool} {spot1}."),
        (
            "With {tool}, {he} set {helper} free.",
            "This time it worked, and at last {helper} was free.",
        ),
        (
            '"Thank you, {hero}!" said {helper}. "You saved me."',
            '"You are so kind," said {helper}.',
        ),
        ("They went home together and drank warm tea.", "They shared {a_food} and laughed.", ""),
    ),
    morals=(
        "{hero} learned that even a small helper can do great things.",
        "From that day on, {hero} and {helper} were best friends.",
        "And {helper} never forgot how kind {hero} was.",
    ),
    question="Who was stuck?",
    answer="{helper} the {friend} was stuck {trap}.",
)

FOOD: Final = Plot(
    name="food",
    requests=(
        "a {kind} and {a_food}",
        "{a_food}",
        "{hero} and {a_food}",
        "a hungry {friend}",
        "sharing food",
    ),
    scenes=(
        ("{when}, {hero} made {a_food}.", "{when}, {hero} found {a_food} {spot1}."),
        (
            "It smelled so good!",
            '"Yum, this is all for me," said {hero}.',
            "{He} could not wait to eat it.",
        ),
        MEETINGS,
        (
            '"I am so hungry," said {helper}. "May I have some?"',
            '"I have not eaten all day," said {helper}.',
        ),
        (
            "{hero} wanted to keep it all.",
            "{hero} did not know what to do.",
            "At first, {hero} said no.",
        ),
        ("But {helper} looked so sad.", "Then {he} saw that {helper} was cold and tired."),
        (
            '"Come and sit with me," said {hero}. "There is enough for two."',
            '"Please have half of it," said {hero}.',
        ),
        ("They ate the {food} together.", "They shared the {food} and told funny stories."),
        (
            "The next day, {helper} came back with a {colour} {thing} for {hero}.",
            "The next day, {helper} brought {hero} a gift. It was a {colour} {thing}.",
        ),
    ),
    morals=(
        "{hero} learned that food tastes better when you share it.",
        "And so {hero} found a new friend.",
        "From then on, they ate together every day.",
    ),
    question="What did they eat?",
    answer="They ate the {food}.",
)

HOUSE: Final = Plot(
    name="house",
    requests=(
        "a {kind} who builds a house",
        "a storm",
        "{hero} and the storm",
        "building a house",
        "a house",
    ),
    details=(
        {"weak": "leaves", "danger": "the wind blew it away", "strong": "stones"},
        {"weak": "sand", "danger": "the rain washed it away", "strong": "bricks"},
        {"weak": "straw", "danger": "the storm tore it down", "strong": "wood"},
        {"weak": "snow", "danger": "the sun melted it", "strong": "clay"},
        {"weak": "paper", "danger": "the rain made it soft", "strong": "wood"},
    ),
    scenes=(
        (
            "{hero} wanted to build a house.",
            "{He} had no house of {his} own, so {he} began to build one.",
        ),
        ("First, {he} built a house of {weak}.", "{when}, {he} built a house of {weak}."),
        ("But {danger}.", "That night, {danger}."),
        ('"Now I have no home," said {hero}.', "{hero} was cold and wet and sad."),
        MEETINGS,
        (
            '"You should use {strong}," said {helper}.',
            '"A house of {strong} will stand for years," said {helper}.',
        ),
        (
            "They worked all day and carried the {strong} together.",
            "They worked side by side until the moon came up.",
        ),
        (
            "When the house was done, it was strong and warm.",
            "At last, the new house of {strong} was ready.",
        ),
        ('"Come in and rest," said {hero}.', '"This is your house too," said {hero}.', ""),
        (
            "They sat by the fire and ate {a_food}.",
            "Outside it was stormy, but inside it was warm.",
        ),
    ),
    morals=(
        "{hero} learned that good work takes time.",
        "And {hero} and {helper} lived there happily.",
        "No storm ever broke that house.",
    ),
    question="What was the new house made of?",
    answer="The new house was made of {strong}.",
)

BIRTHDAY: Final = Plot(
    name="birthday",
    requests=(
        "a birthday",
        "a birthday party",
        "{hero} and a gift",
        "a {kind} who makes a gift",
        "a {thing} for {helper}",
    ),
    scenes=(
        (
            "{when}, {his} friend {helper} the {friend} had a birthday.",
            "It was the birthday of {helper} the {friend}, and {hero} had no gift.",
        ),
        (
            '"What can I give {her}?" thought {hero}.',
            "{hero} wanted to give {her} something special.",
        ),
        ("{He} looked {spot1}, but found nothing.", "{He} had no money at all."),
        ("Then {he} had a good idea.", "{He} thought all night long."),
        (
            "{He} took some {colour} paint and made a {thing}.",
            "{He} worked all day and made a {colour} {thing}.",
        ),
        (
            "It was not perfect, but it was made with love.",
            "It was a little crooked, but very pretty.",
            "",
        ),
        (
            '"Happy birthday, {helper}!" said {hero}. "I made this {thing} for you."',
            '"This {thing} is for you," said {hero}.',
        ),
        (
            '"It is the best gift of all," said {helper}.',
            "{helper} smiled from ear to ear.",
            '"I love it!" said {helper}.',
        ),
        ("They ate {a_food} and danced.", "Then they all sang and ate {a_food}."),
    ),
    morals=(
        "{hero} learned that the best gifts come from the heart.",
        "And {helper} kept the {thing} forever.",
        "It was the happiest day of the year.",
    ),
    question="What did {hero} make?",
    answer="{hero} made a {colour} {thing} for {helper}.",
)

WAY_HOME: Final = Plot(
    name="way home",
    requests=(
        "a {kind} who gets lost",
        "finding the way home",
        "{hero} who is far from home",
        "a lost {kind}",
    ),
    details=(
        {"guide": "the bright star", "bait": "a butterfly"},
        {"guide": "the little stream", "bait": "a rolling ball"},
        {"guide": "the song of the birds", "bait": "a rainbow"},
        {"guide": "the smell of fresh bread", "bait": "a white feather"},
        {"guide": "the light of the moon", "bait": "a firefly"},
    ),
    scenes=(
        ("{when}, {hero} followed {bait} far away.", "{when}, {he} saw {bait} and ran after it."),
        (
            "Soon {he} did not know where {he} was.",
            "When {he} looked around, everything was strange.",
        ),
        ('"I am lost," said {hero}.', '"Where is my home?" cried {hero}.'),
        ("{He} sat down {spot1} and waited.", "{He} walked in circles until {he} was tired.", ""),
        MEETINGS,
        (
            '"Can you help me find my way home?" asked {hero}.',
            '"Please, I want to go home," said {hero}.',
        ),
        (
            '"Yes," said {helper}. "We must follow {guide}."',
            '"Just follow {guide}," said {helper}. "I will come with you."',
        ),
        (
            "They followed {guide} for a long time.",
            "So they walked and walked, and they followed {guide}.",
        ),
        ("At last, {hero} saw {his} own front door.", "Then {hero} saw {his} home again."),
        (
            '"Thank you for walking with me," said {hero}.',
            "{hero} jumped for joy.",
            '"Stay for dinner!" said {hero}.',
        ),
    ),
    morals=(
        "{hero} learned to ask for help when the way is hard.",
        "After that, {hero} never ran so far alone.",
        "That night, both friends slept safe and warm.",
    ),
    question="How did {hero} find the way home?",
    answer="{hero} and {helper} followed {guide}.",
)

SEED: Final = Plot(
    name="seed",
    requests=(
        "a {kind} who plants a seed",
        "a seed",
        "{hero} and a magic seed",
        "waiting",
        "a {kind} with a garden",
    ),
    details=(
        {"plant": "pumpkin", "wonder": "as big as a house"},
        {"plant": "sunflower", "wonder": "as tall as a tower"},
        {"plant": "apple tree", "wonder": "full of sweet apples"},
        {"plant": "rose", "wonder": "as red as the evening sky"},
        {"plant": "strawberry", "wonder": "as sweet as honey"},
    ),
    scenes=(
        (
            "{when}, {he} found a tiny seed {spot1}.",
            "{when}, {hero} found a small seed and put it in the ground.",
        ),
        ("{He} gave it water and waited.", "{He} watered it every morning."),
        ("But nothing happened.", "Days went by, but nothing grew."),
        ('"This seed is no good," said {hero}.', '"Why does it not grow?" asked {hero}.'),
        MEETINGS,
        (
            '"Good things need time," said {helper}.',
            '"Wait a little longer," said {helper}. "Sing to it every day."',
        ),
        (
            "So {hero} waited and sang to the seed.",
            "{hero} waited for the sun and the rain to do their work.",
        ),
        (
            "One morning, there was a little green leaf!",
            "Then a small green plant came out of the ground.",
        ),
        ("It grew and grew into a {plant}, {wonder}.", "Soon it was a {plant}, {wonder}."),
        ('"How beautiful!" said {helper}.', "{hero} showed it to {helper} with a big smile."),
    ),
    morals=(
        "{hero} learned to be patient.",
        "They shared the {plant} with all their friends.",
        "And every year, {hero} planted a new seed.",
    ),
    question="What did the seed become?",
    answer="The seed became a {plant}, {wonder}.",
)

PLOTS: Final = (LOST, SKILL, FEAR, QUARREL, RESCUE, FOOD, HOUSE, BIRTHDAY, WAY_HOME, SEED)
