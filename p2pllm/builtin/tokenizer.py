"""The built-in model's tokenizer: byte-level BPE, trained on the grammar alone.

Byte-level means that every text there is has tokens and comes back unchanged; training on the
grammar means that nearly every word of a story is one token. The saved folder loads with
``AutoTokenizer.from_pretrained``, without network and without remote code.

Layout of a conversation (special tokens in angle brackets, no spaces or line breaks between)::

    <|begin|><|system|>...<|end|><|user|>...<|end|><|assistant|>...<|end|>

and of plain text: ``<|begin|>...<|end|>``. One end token closes every turn, so a model that has
finished its answer says so with the end-of-sequence token.
"""

import random
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from p2pllm.builtin.chat import Message, conversation

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL_TOKENS: Final = (BEGIN, END, SYSTEM, USER, ASSISTANT)

VOCABULARY_SIZE: Final = 2048
POSITIONS_MAX: Final = 512
CONVERSATIONS_TRAINED_ON: Final = 6000

# "developer" is the newer word for "system"; a role nobody trained ("tool") is read as the user.
# Content may be a string or, as the API also allows, a list of parts.
CHAT_TEMPLATE: Final = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['content'] is string %}"
    "{%- set text = message['content'] %}"
    "{%- else %}"
    "{%- set text = (message['content'] or [])"
    " | selectattr('text', 'defined') | map(attribute='text') | join(' ') %}"
    "{%- endif %}"
    "{%- if message['role'] in ['system', 'developer'] %}{{- '<|system|>' }}"
    "{%- elif message['role'] == 'assistant' %}{{- '<|assistant|>' }}"
    "{%- else %}{{- '<|user|>' }}"
    "{%- endif %}"
    "{{- text | trim }}{{- eos_token }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on seeded conversations; the same seed gives the same tokenizer."""

    def texts() -> list[str]:
        source = random.Random(f"tokenizer {seed}")
        return [
            message["content"]
            for _ in range(CONVERSATIONS_TRAINED_ON)
            for message in conversation(source)
        ]

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # A plain text starts with the begin token, as in training; a chat template writes its own.
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {BEGIN} $B",
        special_tokens=[(BEGIN, backend.token_to_id(BEGIN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS_MAX,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer saved in ``folder``."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast, messages: list[Message]
) -> tuple[list[int], list[bool]]:
    """Encode a conversation for training.

    Args:
        tokenizer: As from :func:`train_tokenizer`.
        messages: As from :func:`p2pllm.builtin.chat.conversation`.

    Returns:
        Token ids, and for each whether the storyteller says it (and so should learn to): the
        answers with their end tokens, and the whole of a plain text after the begin token.
    """
    role_tokens = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
    pieces: list[tuple[str, bool]] = [(BEGIN, False)]
    for message in messages:
        if message["role"]:
            pieces.append((role_tokens[message["role"]], False))
        pieces.append((message["content"] + END, message["role"] in ("", "assistant")))
    # One call for all the pieces; special tokens keep them apart, so the pieces' ids joined are
    # the ids of the joined text.
    encoded: list[list[int]] = tokenizer(
        [text for text, _ in pieces], add_special_tokens=False, return_attention_mask=False
    )["input_ids"]
    ids: list[int] = []
    is_said: list[bool] = []
    for (_, said), piece in zip(pieces, encoded, strict=True):
        ids.extend(piece)
        is_said.extend([said] * len(piece))
    return ids, is_said
