"""Request bodies. What is not declared is refused, and so is what would change the result.

Types are strict (`"1"` is no number) and everything is bounded, so that a body within the size
limit cannot make validation itself expensive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from p2pllm.api.errors import from_validation
from p2pllm.domain.generation import LOGIT_BIAS_MAX, TOKEN_ID_MAX, TOP_LOGPROBS_MAX

STOPS_MAX = 16
STOP_LENGTH_MAX = 256
CHOICES_MAX = 16
PROMPTS_MAX = 16
MESSAGES_MAX = 4_096
PARTS_MAX = 1_024

Prompt = str | tuple[int, ...]
Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: bytes) -> Model:
    """The body as `model`.

    Raises:
        RequestError: it is not JSON, or does not fit; the first fault is named.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise from_validation(error) from None


def _stops(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(cast(list[Any], stops)) > STOPS_MAX:
        raise ValueError(f"a string or a list of at most {STOPS_MAX} strings is needed")
    for stop in cast(list[Any], stops):
        if not isinstance(stop, str) or not 1 <= len(stop) <= STOP_LENGTH_MAX:
            raise ValueError(f"a stop string has 1 to {STOP_LENGTH_MAX} characters")
    return tuple(cast(list[str], stops))


def _token_ids(value: list[Any]) -> tuple[int, ...]:
    for token in value:
        if type(token) is not int or not 0 <= token <= TOKEN_ID_MAX:
            raise ValueError("token ids are whole numbers from 0 on")
    return tuple(value)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    needed = "a string, a list of strings, a list of token ids or a list of such lists is needed"
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise ValueError(needed)
    items = cast(list[Any], value)
    if type(items[0]) is int:
        return (_token_ids(items),)
    if len(items) > PROMPTS_MAX:
        raise ValueError(f"at most {PROMPTS_MAX} prompts go into one request")
    if all(isinstance(item, str) for item in items):
        return tuple(items)
    if all(isinstance(item, list) for item in items):
        return tuple(_token_ids(item) for item in items)
    raise ValueError(needed)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or len(cast(list[Any], value)) > PARTS_MAX:
        raise ValueError(f"a string or a list of at most {PARTS_MAX} text parts is needed")
    texts: list[str] = []
    for part in cast(list[Any], value):
        if not isinstance(part, dict):
            raise ValueError("a part is an object such as {'type': 'text', 'text': ...}")
        kind = cast(dict[str, Any], part).get("type")
        text = cast(dict[str, Any], part).get("text")
        if kind != "text":
            raise ValueError("only parts of type 'text' are supported")
        if not isinstance(text, str):
            raise ValueError("a part of type 'text' needs 'text', a string")
        texts.append(text)
    return "\n".join(texts)


def _refuse(values: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    for field, allowed in neutral.items():
        value = values.get(field)
        if value is not None and not any(
            type(value) is type(item) and value == item for item in allowed
        ):
            raise PydanticCustomError("unsupported", "not implemented", {"field": field})


class _Body(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), frozen=True
    )


class StreamOptions(_Body):
    """How a streamed answer looks.

    Attributes:
        include_usage: send a last chunk with `usage`.
        include_obfuscation: accepted; nothing is padded here.
    """

    include_usage: bool = False
    include_obfuscation: bool = False


class Extension(_Body):
    """Field `p2pllm` of a request.

    Attributes:
        details: send token ids, path, attempts and timings along.
    """

    details: bool = False


class GenerationBody(_Body):
    """What both kinds of generation take.

    Fields below "accepted" are of no consequence to the result; those in `NEUTRAL` may hold only
    the values given there, which ask for nothing.
    """

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=TOKEN_ID_MAX)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=LOGIT_BIAS_MAX)] | None = None
    p2pllm: Extension | None = None

    # accepted
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def wants_details(self) -> bool:
        """Whether the answer carries `p2pllm`."""
        return self.p2pllm is not None and self.p2pllm.details

    @property
    def wants_usage(self) -> bool:
        """Whether a streamed answer ends with `usage`."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def tokens_max(self) -> int | None:
        """Most tokens to generate, where the client said so."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives per token in logprobs; None for no logprobs."""
        raise NotImplementedError

    @field_validator("logit_bias")
    @classmethod
    def _check_logit_bias(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) <= 10):
                raise ValueError("its keys are token ids, written as strings")
            if not -100 <= bias <= 100:
                raise ValueError("a bias lies between -100 and 100")
        return value

    @model_validator(mode="after")
    def _check_neutral(self) -> Self:
        _refuse(self.__dict__, self.NEUTRAL)
        if self.stream_options is not None and not self.stream:
            raise ValueError("'stream_options' needs 'stream': true")
        return self


class Message(_Body):
    """One message of a conversation."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tool_calls": ([],),
        "function_call": (),
        "audio": (),
        "tool_call_id": (),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_content)]
    name: Annotated[str, Field(max_length=256)] | None = None

    # accepted: what an answer carries, so that it can be sent back as it came
    refusal: Any = None
    annotations: Any = None

    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None
    tool_call_id: Any = None

    @model_validator(mode="after")
    def _check_neutral(self) -> Self:
        _refuse(self.__dict__, self.NEUTRAL)
        return self

    def template_fields(self) -> dict[str, str]:
        """What the chat template sees; it knows no developers."""
        fields = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
        }
        if self.name is not None:
            fields["name"] = self.name
        return fields


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "audio": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    # accepted
    parallel_tool_calls: Any = None
    prediction: Any = None
    prompt_cache_key: Any = None
    safety_identifier: Any = None

    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("'top_logprobs' needs 'logprobs': true")
        return self

    @property
    def tokens_max(self) -> int | None:
        """The newer name wins."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """Alternatives per token in logprobs; None for no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`."""

    NEUTRAL: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "echo": (False,),
        "best_of": (1,),
        "suffix": ("",),
    }

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts)]
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    echo: Any = None
    best_of: Any = None
    suffix: Any = None

    @property
    def alternatives(self) -> int | None:
        """Alternatives per token in logprobs; None for no logprobs."""
        return self.logprobs


Reference = Annotated[str, Field(min_length=1, max_length=1_024)]


class PlanBody(_Body):
    """`POST /p2pllm/v1/plan`."""

    reference: Reference


class ModelBody(_Body):
    """`POST /p2pllm/v1/models`."""

    reference: Reference
    name: Annotated[str, Field(max_length=128)] | None = None


class InviteBody(_Body):
    """`POST /p2pllm/v1/invites`."""

    uses: Annotated[int, Field(ge=1, le=10_000)] = 1
    ttl_s: Annotated[int, Field(ge=1, le=365 * 86_400)] = 86_400
