"""The bodies of the two endpoints: what OpenAI's clients send and this server honours. Anything else is refused."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_KEYS = 100
"""Of one object. Every unknown key is an error of its own, and a body has room for a million of them."""


def _check_size(data: Any) -> Any:
    if isinstance(data, dict) and len(data) > MOST_KEYS:
        raise ValueError(f"{len(data)} keys are too many; give at most {MOST_KEYS}")
    return data


def _unpack_prompt(prompt: Any) -> Any:
    """Many clients send a prompt as a list of prompts, even a single one."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise ValueError(f"a request takes one prompt, not {len(prompt)}; send a request for each")
        return prompt[0]
    return prompt


def _check_text(text: str) -> str:
    text.encode()  # JSON can carry halves of characters, which no tokenizer takes; pydantic reports the ValueError
    return text


Text = Annotated[str, AfterValidator(_check_text)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(fail_fast=True, min_length=1)]
StopText = Annotated[Text, Field(max_length=1000)]
Stop = StopText | Annotated[list[Annotated[StopText, Field(min_length=1)]], Field(fail_fast=True, max_length=16)]


class _Object(BaseModel):
    """An object of a body: nothing unknown in it, and `null` is the default of every option, as in OpenAI's API."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(_check_size(data), dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}


class StreamOptions(_Object):
    """Options of a stream."""

    include_usage: bool = False


class _Sampling(_Object):
    """What both endpoints take. Options that change an answer in a way that is not implemented take their neutral value
    only."""

    model: Text
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Stop | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    vllm_xargs: Annotated[dict[Text, Text | int | float], BeforeValidator(_check_size)] | None = Field(
        None, description="elastic_routes, elastic_budget"
    )

    def list_stops(self) -> list[str]:
        """The strings that end an answer."""
        stops = [self.stop] if isinstance(self.stop, str) else (self.stop or [])
        return [text for text in stops if text]


class CompletionRequest(_Sampling):
    """Body of /v1/completions; the prompt is a text or its token ids, or a list of one such prompt."""

    prompt: Annotated[Text | TokenIds, BeforeValidator(_unpack_prompt)]
    echo: Literal[False] | None = None
    logprobs: None = None
    best_of: Literal[1] | None = None


class TextPart(_Object):
    """A piece of a message."""

    type: Literal["text"]
    text: Text


class Message(_Object):
    """One message of a conversation. What an answer's message has beside its text, a client sends back with it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None

    def plain(self) -> dict[str, str]:
        """Role and text as chat templates take them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(_Object):
    """Form of an answer."""

    type: Literal["text"] = "text"


class ChatRequest(_Sampling):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
