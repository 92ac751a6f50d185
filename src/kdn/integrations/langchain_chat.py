"""kdn as a chat model of LangChain, with answers that keep to a schema token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdn.api import Kdn
from kdn.core import Finish, FinishReason, Usage
from kdn.errors import BadInput, KdnError, MissingExtra
from kdn.integrations.speaking import Schema, Speaker, on_a_thread, parsed, schema_of
from kdn.model import Message

try:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.runnables import Runnable, RunnableLambda
    from pydantic import ConfigDict
except ImportError as error:
    raise MissingExtra(
        "this needs LangChain's core package: pip install 'kdn[langchain]'"
    ) from error

if TYPE_CHECKING:
    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput

__all__ = ["KdnChat"]

_ROLES = {"system": "system", "human": "user", "ai": "assistant"}


class KdnChat(BaseChatModel):
    """The open model in a chain, whole and streamed.

    `kdn` stays the caller's to close.  `with_structured_output` constrains the answer, so that it is what
    the schema allows whatever the model is.  Messages are texts of system, human and AI.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    kdn: Kdn
    max_tokens: int = 512
    temperature: float | None = None
    """None: the model's own."""
    salt: str = ""

    @property
    def _llm_type(self) -> str:
        return "kdn"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {
            "model": self.kdn.name,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[LanguageModelInput, Any]:
        """A chain to objects of a Pydantic class, or to plain values of a JSON schema.

        With `include_raw` it gives `raw`, `parsed` and `parsing_error`; without, what cannot be parsed
        raises BadInput.
        """
        if kwargs:
            raise BadInput(f"kdn does not take {', '.join(sorted(kwargs))}; leave it out")
        asked = self.bind(json_schema=dict(schema_of(schema)))

        def read(message: BaseMessage) -> Any:
            try:
                found, failed = _parsed(message, schema), None
            except KdnError as error:
                if not include_raw:
                    raise
                found, failed = None, error
            raw = {"raw": message, "parsed": found, "parsing_error": failed}
            return raw if include_raw else found

        return asked | RunnableLambda(read)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        _refuse(kwargs)
        said = self._speaker.say(_turns(messages), json_schema, stop or ())
        message = AIMessage(
            said.text,
            response_metadata=_ending(said.finish),
            usage_metadata=_usage(said.finish.usage),
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """As `_generate`, beside the event loop. A task that is cancelled stops its answer."""
        return await on_a_thread(self._generate, messages, stop, **kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        json_schema: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        _refuse(kwargs)
        for event in self._speaker.events(_turns(messages), json_schema, stop or ()):
            if isinstance(event, Finish):
                message = AIMessageChunk(
                    content=event.tail,
                    response_metadata=_ending(event),
                    usage_metadata=_usage(event.usage),
                )
            else:
                message = AIMessageChunk(content=event.text)
            chunk = ChatGenerationChunk(message=message)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    @property
    def _speaker(self) -> Speaker:
        return Speaker(self.kdn, self.max_tokens, self.temperature, self.salt)


def _parsed(message: BaseMessage, schema: Schema) -> Any:
    reason = message.response_metadata.get("finish_reason", FinishReason.STOP)
    return parsed(str(message.content), reason, schema)


def _refuse(kwargs: Mapping[str, Any]) -> None:
    for name, value in kwargs.items():
        # What LangChain binds beside a schema tells its traces of it.
        if value is not None and not name.startswith("ls_"):
            raise BadInput(f"kdn's chat model does not take {name}; leave it out")


def _turns(messages: Sequence[BaseMessage]) -> list[Message]:
    turns = []
    for message in messages:
        if message.type not in _ROLES or not isinstance(message.content, str):
            raise BadInput(
                f"a message of type {message.type} with a {type(message.content).__name__} as its"
                " content: kdn takes texts of system, human and AI"
            )
        turns.append(Message(_ROLES[message.type], message.content))
    return turns


def _ending(finish: Finish) -> dict[str, Any]:
    return {"finish_reason": str(finish.reason)}


def _usage(usage: Usage) -> Any:
    return {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "input_token_details": {"cache_read": usage.cached_tokens},
    }
