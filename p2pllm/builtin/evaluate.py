"""What the built-in model is worth: held-out perplexity, samples, and what is wrong with them.

``python -m p2pllm.builtin.evaluate`` prints the report of the model shipped. The held-out stories
and requests come from seeds of their own; a request drawn here names parts of a story and the
answer is checked against them, against the grammar's sentences and against itself.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from p2pllm.builtin import cast, model_path
from p2pllm.builtin.batches import make_batches, summed_loss
from p2pllm.builtin.chat import conversation
from p2pllm.builtin.grammar import draw_story, fill, story_text
from p2pllm.builtin.plots import OPENINGS, PLOTS
from p2pllm.builtin.tokenizer import encode_conversation, load_tokenizer

NEW_TOKENS_MAX: Final = 400

# Asked at temperature 0.8 with the seeds 0, 1, 2; the answers stand in the documentation.
SAMPLE_REQUESTS: Final = (
    "Tell me a story about a brave fox.",
    "Write a story about Mia and a lost kite.",
    "Tell me a story about a dragon and an owl.",
)

_WORD = re.compile(r"[A-Za-z]+")
# A sentence with the marks that close it; a quotation may hold several.
_SENTENCE = re.compile(r'[^.!?]+[.!?]"?')
_KINDS: Final = frozenset((*cast.KINDS, *cast.SHE_KINDS, *cast.HE_KINDS))
_NAMES: Final = frozenset((*cast.HE_NAMES, *cast.SHE_NAMES))


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a story.

    Attributes:
        text: As the user types it.
        parts: The words that the answer must contain, by what they are ("hero", "thing").
    """

    text: str
    parts: dict[str, str]

    @property
    def must_name(self) -> tuple[str, ...]:
        """Return the words that the answer must contain."""
        return tuple(self.parts.values())


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Attributes:
        text: Without special tokens.
        tokens: How many it took, the end token not counted.
        has_stopped: Whether it ended by itself.
    """

    text: str
    tokens: int
    has_stopped: bool


def held_out_source(purpose: str) -> random.Random:
    """Return a source that no training step draws from."""
    return random.Random(f"held out {purpose}")


def held_out_perplexity(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    stories: int,
    purpose: str = "stories",
) -> float:
    """Return the perplexity per token of plain stories drawn from held-out seeds.

    Every story is read after the begin token alone; its end token counts as a token.
    """
    source = held_out_source(purpose)
    rows = [
        encode_conversation(tokenizer, [{"role": "", "content": story_text(source)}])
        for _ in range(stories)
    ]
    return _perplexity(model, tokenizer, rows)


def held_out_chat_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, conversations: int
) -> float:
    """Return the perplexity per token of the storyteller's part of held-out conversations."""
    source = held_out_source("conversations")
    rows = [encode_conversation(tokenizer, conversation(source)) for _ in range(conversations)]
    return _perplexity(model, tokenizer, rows)


def _perplexity(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[tuple[list[int], list[bool]]],
) -> float:
    padding = tokenizer.eos_token_id
    assert isinstance(padding, int)
    loss = 0.0
    said = 0
    with torch.inference_mode():
        for batch in make_batches(rows, rows_per_batch=16, padding=padding):
            loss += float(summed_loss(model, batch))
            said += int((batch.targets >= 0).sum())
    return math.exp(loss / said)


def draw_request(source: random.Random) -> Request:
    """Draw a request that names a hero, a kind, an object or several of them."""
    story = draw_story(source)
    forms = (
        ("a {trait} {kind}", ("trait", "kind")),
        ("{hero} and a lost {thing}", ("hero", "thing")),
        ("a {kind} named {hero}", ("kind", "hero")),
        ("{hero}", ("hero",)),
        ("a {kind} and {an_friend}", ("kind", "friend")),
    )
    form, slots = source.choice(forms)
    asking = source.choice(("Tell me a story about {about}.", "Write a story about {about}."))
    return Request(
        asking.replace("{about}", fill(form, story)), {slot: story.slots[slot] for slot in slots}
    )


def answer(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    request: str,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Answer:
    """Ask ``request`` as a chat; greedy at temperature 0, else seeded sampling."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    return complete(model, tokenizer, text, temperature=temperature, seed=seed)


def complete(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    text: str,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> Answer:
    """Continue ``text``, whose special tokens are written out, the begin token included."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    generator = torch.Generator().manual_seed(seed)
    said: list[int] = []
    past: Any = None
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        while len(said) < NEW_TOKENS_MAX:
            output: Any = model(input_ids=inputs, past_key_values=past, use_cache=True)
            past = output.past_key_values
            logits: torch.Tensor = output.logits[0, -1].float()
            if temperature == 0.0:
                token = int(logits.argmax())
            else:
                chances = torch.softmax(logits / temperature, dim=-1)
                token = int(torch.multinomial(chances, 1, generator=generator))
            if token == end:
                return Answer(_decoded(tokenizer, said), len(said), has_stopped=True)
            said.append(token)
            inputs = torch.tensor([[token]])
    return Answer(_decoded(tokenizer, said), len(said), has_stopped=False)


def _decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def sentences(text: str) -> list[str]:
    """Split a text after its full stops, exclamation marks and question marks."""
    return [match.group().strip() for match in _SENTENCE.finditer(text)]


def skeleton(sentence: str, characters: Iterable[tuple[str, str]]) -> str:
    """Return a sentence without its names, kinds and choices from the word lists.

    Two sentences have the same skeleton when the same templates can write them.

    Args:
        sentence: One sentence.
        characters: Name and kind of those in the story.
    """
    for name, kind in characters:
        sentence = re.sub(rf"\b{re.escape(name)}\b", "NAME", sentence)
        sentence = re.sub(rf"\b{re.escape(kind)}\b", "KIND", sentence)
    lists = {
        "TIME": cast.TIMES,
        "HOME": cast.HOMES,
        "SPOT": cast.SPOTS,
        "FOOD": cast.FOODS,
        "TRAIT": cast.TRAITS,
        "COLOUR": cast.COLOURS,
        "THING": cast.THINGS,
    }
    for slot, words in lists.items():
        pattern = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
        sentence = re.sub(rf"\b(?:{pattern})\b", slot, sentence)
    sentence = re.sub(r"\b(?:an?)\b", "a", sentence)
    return re.sub(r"\b(?:he|she|him|her|his)\b", "HE", sentence, flags=re.IGNORECASE)


@cache
def known_skeletons() -> frozenset[str]:
    """Return the skeletons of all sentences that the grammar can write."""
    slots = {
        **dict.fromkeys(("hero", "helper"), "NAME"),
        **dict.fromkeys(("kind", "friend"), "KIND"),
        **dict.fromkeys(("a_kind", "a_friend"), "a TRAIT KIND"),
        **dict.fromkeys(("he", "him", "his", "He", "His", "her"), "HE"),
        **dict.fromkeys(("spot1", "spot2", "spot3"), "SPOT"),
        "thing": "THING",
        "colour": "COLOUR",
        "home": "HOME",
        "food": "FOOD",
        "a_food": "a FOOD",
        "when": "TIME",
    }
    found: set[str] = set()
    for plot in PLOTS:
        wordings = [each for scene in (OPENINGS, *plot.scenes, plot.morals) for each in scene]
        for details in plot.details:
            filled = slots | {name: words.format_map(slots) for name, words in details.items()}
            for wording in wordings:
                written = sentences(wording.format_map(filled))
                found.update(skeleton(sentence, ()) for sentence in written)
    return frozenset(found)


def characters_in(text: str) -> list[tuple[str, str]]:
    """Return name and kind of everyone whom a story introduces, in order."""
    patterns = (
        r"\ban? \w+ (?P<kind>\w+) named (?P<name>[A-Z]\w*)",
        r"^(?P<name>[A-Z]\w*) was an? \w+ (?P<kind>\w+) who lived",
        r"(?:Then|then,|of|friend) (?P<name>[A-Z]\w*) the (?P<kind>\w+)",
    )
    matches = [match for pattern in patterns for match in re.finditer(pattern, text)]
    matches.sort(key=lambda match: match.start())
    return [(match.group("name"), match.group("kind")) for match in matches]


def complaints(text: str, must_name: Iterable[str] = ()) -> list[str]:
    """Return what is wrong with a story; nothing, if it is one that the grammar could tell.

    Checked: it names what was asked for, introduces two characters and mentions no third name or
    kind, uses only the grammar's sentences, closes its quotations, and ends with a full stop. A
    pronoun that changes, or an object that does, is looked for as well.
    """
    found: list[str] = []
    words = set(_WORD.findall(text))
    lowered = {word.lower() for word in words}
    found += [
        f"does not name {wanted!r}"
        for wanted in must_name
        if not {word.lower() for word in _WORD.findall(wanted)} <= lowered
    ]
    characters = characters_in(text)
    if len(characters) != 2:
        found.append(f"introduces {len(characters)} characters")
    elif characters[0][0] == characters[1][0]:
        found.append("gives two characters one name")
    strangers = words & (_NAMES | _KINDS) - {each for pair in characters for each in pair}
    # "kind" aside, a name or kind that nobody in the story has.
    found += [f"mentions {stranger!r} from nowhere" for stranger in sorted(strangers)]
    if characters:
        pronoun = _pronoun_of(characters[0][0])
        # The second sentence of an opening speaks of the hero alone.
        opening = re.search(r"^[^.]*\. (He|She|His|Her)\b", text)
        if pronoun and opening and opening.group(1) in _OTHER_FORMS[pronoun]:
            found.append(f"calls {characters[0][0]} {opening.group(1)!r}")
    found += [
        f"no such sentence: {sentence!r}"
        for sentence in sentences(text)
        if skeleton(sentence, characters) not in known_skeletons()
    ]
    if text.count('"') % 2:
        found.append("leaves a quotation open")
    if not text.endswith((".", "!", "?")):
        found.append("breaks off")
    # What is baked or rolls past is not the object of the story.
    aside = (*cast.FOODS, "rolling ball", "every ball")
    remaining = re.sub("|".join(map(re.escape, aside)), "", text)
    if len(set(_WORD.findall(remaining)) & set(cast.THINGS)) > 1:
        found.append("changes the object")
    return found


_OTHER_FORMS: Final = {"he": ("She", "Her"), "she": ("He", "His")}


def _pronoun_of(name: str) -> str | None:
    if name in cast.HE_NAMES:
        return "he"
    return "she" if name in cast.SHE_NAMES else None


def load_model(folder: Path) -> LlamaForCausalLM:
    """Load the model in ``folder`` in float32, ready to be asked."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval()


def evaluate(folder: Path, *, stories: int = 500, chats: int = 50) -> dict[str, Any]:
    """Measure the model in ``folder``.

    Args:
        folder: As written by :mod:`p2pllm.builtin.train`.
        stories: Held-out stories, and as many conversations, for the perplexities.
        chats: Requests to answer, once greedily and once at temperature 0.8.

    Returns:
        A report that ``json`` can write.
    """
    model = load_model(folder)
    tokenizer = load_tokenizer(folder)
    report: dict[str, Any] = {
        "parameters": sum(each.numel() for each in model.parameters()),
        "safetensors_bytes": (folder / "model.safetensors").stat().st_size,
        "held_out_stories": stories,
        "held_out_perplexity": held_out_perplexity(model, tokenizer, stories=stories),
        "held_out_chat_perplexity": held_out_chat_perplexity(
            model, tokenizer, conversations=stories
        ),
    }
    report["samples"] = {
        request: answer(model, tokenizer, request, temperature=0.8, seed=number).text
        for number, request in enumerate(SAMPLE_REQUESTS)
    }
    for temperature in (0.0, 0.8):
        source = held_out_source("requests")
        requests = [draw_request(source) for _ in range(chats)]
        answers = [
            answer(model, tokenizer, request.text, temperature=temperature, seed=number)
            for number, request in enumerate(requests)
        ]
        faults = [
            complaints(each.text, request.must_name)
            for each, request in zip(answers, requests, strict=True)
        ]
        told = [sentence for each in answers for sentence in sentences(each.text)]
        unknown = sum(fault.startswith("no such") for each in faults for fault in each)
        report[f"chats_at_temperature_{temperature}"] = {
            "asked": chats,
            "stopped": sum(each.has_stopped for each in answers),
            "longest_tokens": max(each.tokens for each in answers),
            "honoured": sum(
                not any(fault.startswith("does not name") for fault in each) for each in faults
            ),
            "honoured_by_part": _honoured_by_part(requests, answers),
            "sentences_of_the_grammar": 1 - unknown / max(1, len(told)),
            "flawless": sum(not each for each in faults),
            "faults": [
                {"request": request.text, "answer": each.text, "faults": fault}
                for request, each, fault in zip(requests, answers, faults, strict=True)
                if fault
            ],
        }
    return report


def _honoured_by_part(requests: list[Request], answers: list[Answer]) -> dict[str, str]:
    """Return for every part of a request how often it was honoured, as "17 of 20"."""
    asked: Counter[str] = Counter()
    honoured: Counter[str] = Counter()
    for request, each in zip(requests, answers, strict=True):
        words = set(_WORD.findall(each.text))
        for part, wanted in request.parts.items():
            asked[part] += 1
            honoured[part] += wanted in words
    return {part: f"{honoured[part]} of {count}" for part, count in sorted(asked.items())}


def main() -> None:
    """Print the report of the model shipped."""
    Console().print(json.dumps(evaluate(model_path()), indent=2), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
