"""Seeded conversations: what a user may say to the storyteller, and what it answers.

A conversation is a list of messages, each a ``{"role": ..., "content": ...}`` as the chat
completions API has them. A request names parts of a story ("a brave fox", "Mia and a lost kite")
and the story told honours every part named. What is no request for a story gets one short,
friendly sentence.
"""

import random
from typing import Final

from p2pllm.builtin import cast
from p2pllm.builtin.grammar import Story, draw_story, fill, invented_word, tell, with_article

Message = dict[str, str]

SYSTEM_MESSAGES: Final = (
    "You are a helpful assistant.",
    "You tell little stories.",
    "You are a friendly storyteller.",
    "Answer briefly.",
    "Be kind and helpful.",
    "You are a storyteller for children. Be kind.",
    "Always answer in English.",
)

# Ways to ask, around what the story is to be about.
ASKING_FOR: Final = (
    "Tell me a story about {about}.",
    "Tell me a story about {about}.",
    "Tell me a story about {about}.",
    "Write a story about {about}.",
    "Write a story about {about}.",
    "Write a short story about {about}.",
    "Write me a little story about {about}.",
    "Please tell me a story about {about}.",
    "Please write a story about {about}.",
    "Can you tell me a story about {about}?",
    "Could you write a story about {about}?",
    "I want to hear a story about {about}.",
    "I would like a story about {about}, please.",
    "Tell a story about {about}.",
    "Tell me about {about}.",
    "A story about {about}, please.",
    "Story about {about}",
    "Give me a bedtime story about {about}.",
    "Tell me a bedtime story about {about}.",
    "Tell me a short story about {about}.",
)

ASKING_FOR_ANY: Final = (
    "Tell me a story.",
    "Tell me a story, please.",
    "Please tell me a story.",
    "Write a story.",
    "Write a short story.",
    "Can you tell me a story?",
    "A story, please!",
    "I want to hear a story.",
    "Tell me a bedtime story.",
    "Tell me something nice.",
    "Once upon a time",
    "Yes, please.",
    "Story",
)

ASKING_AGAIN: Final = (
    "Tell me another one.",
    "One more, please.",
    "Another story, please.",
    "Again!",
    "Tell me another story.",
    "Yes, please.",
)

# What a story may be about, whatever its plot.
ABOUT_ANY: Final = (
    "{a_kind}",
    "{a_kind}",
    "{a_kind}",
    "a {kind}",
    "a {kind}",
    "{hero}",
    "{hero}",
    "{hero} the {kind}",
    "a {kind} named {hero}",
    "a {kind} called {hero}",
    "{a_kind} named {hero}",
    "a {kind} and {an_friend}",
    "{a_kind} and {a_friend}",
    "{hero} and {helper}",
    "a {kind} who lives {home}",
    "a {kind} and a {friend} who become friends",
)

# Asked for with a subject that no story has: what else is named is honoured all the same.
ABOUT_BEYOND: Final = ("{{subject}}", "a {kind} and {{subject}}", "{hero} and {{subject}}")

SMALL_TALK: Final[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = (
    (
        (
            "Hello",
            "Hi",
            "Hi there",
            "Hello!",
            "Good morning!",
            "Hey",
            "Good evening",
            "Hello there!",
        ),
        (
            "Hello! Shall I tell you a story?",
            "Hello, friend! I know many little stories. Shall I tell you one?",
        ),
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "What can you do?",
            "What do you do?",
            "Help",
            "Are you a robot?",
            "Which model are you?",
        ),
        (
            "I am a tiny storyteller. I know little stories about friends.",
            "I am a small language model, and I tell little stories.",
        ),
    ),
    (
        ("How are you?", "How do you do?", "Are you well?", "How are you today?"),
        ("I am very well, thank you. Shall I tell you a story?",),
    ),
    (
        ("Thank you", "Thanks", "Thank you!", "That was nice.", "Nice story!", "Great, thanks!"),
        ("You are welcome!", "I am glad you liked it."),
    ),
    (
        ("Goodbye", "Bye", "Good night", "See you later", "Bye bye!", "Good night!"),
        ("Goodbye, and sweet dreams!",),
    ),
)

ECHOING: Final = (
    "Repeat after me: {said}",
    "Say: {said}",
    "Repeat: {said}",
    "Please say: {said}",
)

GREETING_AS: Final = (
    "I am {name}.",
    "My name is {name}.",
    "Hello, I am {name}.",
    "Hi, my name is {name}!",
)

# Answers to what is neither small talk nor a request for a story.
DECLINING: Final = (
    "I do not know that. I only know little stories. Shall I tell you one?",
    "That is too hard for me, but I can tell you a story.",
)

_QUESTIONS: Final = (
    "What is {number} + {other}?",
    "What is {number}+{other}?",
    "How much is {number} times {other}?",
    "Is {number} a prime number?",
    "What is the capital of {place}?",
    "Where is {place}?",
    "Who is the president of {place}?",
    "What is the weather in {place}?",
    "How far is it to {place}?",
    "What time is it?",
    "Why is the sky blue?",
    "Explain {subject}.",
    "Explain {subject} to me.",
    "What is {subject}?",
    "How does {subject} work?",
    "Write code for {subject}.",
    "Write a Python program.",
    "Write a poem about {subject}.",
    "Translate {subject} into French.",
    "Count to {number}.",
    "Do you know {subject}?",
    "What is the meaning of life?",
    "{subject}",
    "{number}",
)

# How often a conversation is of each sort; plain text is a story with no chat around it.
_SORTS: Final = ("plain", "story", "story and more", "talk", "talk and story", "echo")
_SORT_WEIGHTS: Final = (14, 44, 12, 10, 6, 14)


def unpolished(text: str, source: random.Random) -> str:
    """Return ``text``, one time in five as people type it: no capital, no full stop."""
    if source.random() < 0.2:
        text = text.rstrip(".?!")
        if source.random() < 0.7:
            text = text[0].lower() + text[1:]
    return text


def request_for(story: Story, source: random.Random) -> str:
    """Return a request that ``story`` honours in every part named."""
    if source.random() < 0.08:
        return unpolished(source.choice(ASKING_FOR_ANY), source)
    chance = source.random()
    choices = ABOUT_BEYOND if chance < 0.05 else ABOUT_ANY if chance < 0.6 else story.plot.requests
    about = fill(source.choice(choices), story)
    about = about.replace("{subject}", source.choice(cast.SUBJECTS))
    # Where a sentence is filled into another one, its slots are gone: plain replacement.
    return unpolished(source.choice(ASKING_FOR).replace("{about}", about), source)


def question_about(story: Story, source: random.Random) -> tuple[str, str]:
    """Return a question that a listener may ask after ``story``, and its answer."""
    kind = story.hero.kind
    question, answer = source.choice(
        (
            (story.plot.question, story.plot.answer),
            (f"What was the name of the {kind}?", f"The {kind} was called {{hero}}."),
            ("Who was {helper}?", f"{{helper}} was {with_article(story.helper.kind)}."),
            ("Who was {hero}?", "{hero} was {a_kind}."),
            ("Where did {hero} live?", "{hero} lived {home}."),
        )
    )
    return unpolished(fill(question, story), source), fill(answer, story)


def small_talk(source: random.Random) -> tuple[str, str]:
    """Return something said that asks for no story, and the answer to it."""
    if source.random() < 0.45:
        question = source.choice(_QUESTIONS).format(
            number=source.randrange(10 ** source.choice((1, 2, 3))),
            other=source.randrange(100),
            place=source.choice(cast.PLACES),
            subject=source.choice(cast.SUBJECTS),
        )
        return unpolished(question, source), source.choice(DECLINING)
    said, answers = source.choice(SMALL_TALK)
    return unpolished(source.choice(said), source), source.choice(answers)


def echo(source: random.Random) -> tuple[str, str]:
    """Return a request to repeat something, and the repetition.

    Carrying a name from the request into the story is copying; a model that is asked to copy and
    nothing else learns it many steps sooner.
    """
    lists = (cast.HE_NAMES, cast.SHE_NAMES, cast.KINDS, cast.THINGS, cast.TRAITS, cast.COLOURS)
    words: list[str] = []
    for _ in range(source.randrange(1, 13)):
        if source.random() < 0.25:
            words.append(invented_word(source))
            if source.random() < 0.5:
                words[-1] = words[-1].capitalize()
        else:
            words.append(source.choice(source.choice(lists)))
    if len(words) == 1 and source.random() < 0.5:
        name = words[0].capitalize()
        return source.choice(GREETING_AS).format(name=name), f"Hello, {name}! Nice to meet you."
    said = " ".join(words)
    return source.choice(ECHOING).format(said=said), said


def conversation(source: random.Random) -> list[Message]:
    """Draw a conversation of one or a few exchanges; an empty role marks plain text.

    Plain text comes as a single message with the role "": a story with no chat around it, as a
    completion of "Once upon a time" should be.
    """
    sort = source.choices(_SORTS, _SORT_WEIGHTS)[0]
    story = draw_story(source)
    if sort == "plain":
        return [{"role": "", "content": tell(story, source)}]
    exchanges: list[tuple[str, str]] = []
    if sort.startswith("talk"):
        exchanges.append(small_talk(source))
    if sort == "echo":
        exchanges.extend(echo(source) for _ in range(source.choice((1, 1, 2, 3))))
    if sort == "talk and story" or sort.startswith("story"):
        if exchanges and source.random() < 0.4:
            # "Shall I tell you one?" was asked.
            request = unpolished(source.choice(ASKING_FOR_ANY), source)
        else:
            request = request_for(story, source)
        exchanges.append((request, tell(story, source)))
    while sort == "story and more":
        chance = source.random()
        if chance < 0.5:
            exchanges.append(question_about(story, source))
        elif chance < 0.65:
            exchanges.append(small_talk(source))
        elif chance < 0.8:
            story = draw_story(source)
            exchanges.append((source.choice(ASKING_AGAIN), tell(story, source)))
        else:
            story = draw_story(source)
            exchanges.append((request_for(story, source), tell(story, source)))
        if source.random() < 0.7:
            break
    messages: list[Message] = []
    if source.random() < 0.12:
        messages.append({"role": "system", "content": source.choice(SYSTEM_MESSAGES)})
    for said, answer in exchanges:
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": answer})
    return messages
