"""kdn as a language model of LlamaIndex, with answers that keep to a schema token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from kdn.api import Kdn
from kdn.core import Finish
from kdn.errors import BadInput, MissingExtra
from kdn.integrations.speaking import Speaker, beside_the_loop, on_a_thread, parsed, schema_of
from kdn.model import Message

try:
    from llama_index.core.base.llms.types import (
        ChatMessage,
        ChatResponse,
        ChatResponseAsyncGen,
        ChatResponseGen,
        CompletionResponse,
        CompletionResponseAsyncGen,
        CompletionResponseGen,
        LLMMetadata,
        MessageRole,
        TextBlock,
    )
    from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
    from llama_index.core.llms.custom import CustomLLM
    from llama_index.core.prompts import PromptTemplate
    from pydantic import BaseModel, ConfigDict
except ImportError as error:
    raise MissingExtra(
        "this needs LlamaIndex's core package: pip install 'kdn[llamaindex]'"
    ) from error

__all__ = ["KdnLlm"]

Model = TypeVar("Model", bound=BaseModel)
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""By value: the first releases have no role of a developer."""


class KdnLlm(CustomLLM):
    """The open model, whole and streamed; a completion is a chat of one message.

    `kdn` stays the caller's to close.  `structured_predict`, and `as_structured_llm` which stands on it,
    constrain the answer, so that it is what the class allows whatever the model is.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kdn: Kdn
    max_tokens: int = 512
    temperature: float | None = None
    """None: the model's own."""
    salt: str = ""

    @classmethod
    def class_name(cls) -> str:
        return "KdnLlm"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans prompts by."""
        return LLMMetadata(
            context_window=self.kdn.model.decoder.config.max_position,
            num_output=self.max_tokens,
            is_chat_model=True,
            model_name=self.kdn.name,
        )

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to one message. Raises KdnError."""
        _refuse(kwargs)
        return CompletionResponse(text=self._speaker.say([Message("user", prompt)]).text)

    @llm_completion_callback()
    def stream_complete(
        self,
        prompt: str,
        formatted: bool = False,
        **kwargs: Any,
    ) -> CompletionResponseGen:
        """As `complete`, piece by piece."""
        _refuse(kwargs)
        pieces = self._pieces([Message("user", prompt)])
        return (CompletionResponse(text=text, delta=delta) for text, delta in pieces)

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The next turn, by the model's own template. Raises KdnError."""
        _refuse(kwargs)
        return _response(self._speaker.say(_turns(messages)).text)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """As `chat`, piece by piece."""
        _refuse(kwargs)
        return (_response(text, delta) for text, delta in self._pieces(_turns(messages)))

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object of the class, by constraint. Raises BadInput for an answer that was cut off."""
        _refuse(llm_kwargs or {})
        turns = _turns(prompt.format_messages(llm=self, **prompt_args))
        said = self._speaker.say(turns, schema_of(output_cls))
        found: Model = parsed(said.text, said.finish.reason, output_cls)
        return found

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """As `structured_predict`, beside the event loop."""
        predict = partial(self.structured_predict, output_cls, prompt, llm_kwargs, **prompt_args)
        return await on_a_thread(predict)

    # The base class answers on the event loop, and a cancelled task would not stop its answer. Callbacks are
    # those of the verbs that run on the thread.

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, beside the event loop."""
        return await on_a_thread(self.complete, prompt, formatted, **kwargs)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, beside the event loop."""
        return beside_the_loop(partial(self.stream_complete, prompt, formatted, **kwargs))

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, beside the event loop."""
        return await on_a_thread(self.chat, messages, **kwargs)

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, beside the event loop."""
        return beside_the_loop(partial(self.stream_chat, messages, **kwargs))

    def _pieces(self, turns: Sequence[Message]) -> Iterator[tuple[str, str]]:
        """The text so far, and what is new of it."""
        text = ""
        for event in self._speaker.events(turns):
            delta = event.tail if isinstance(event, Finish) else event.text
            text += delta
            yield text, delta

    @property
    def _speaker(self) -> Speaker:
        return Speaker(self.kdn, self.max_tokens, self.temperature, self.salt)


def _response(text: str, delta: str | None = None) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=text)
    return ChatResponse(message=message, delta=delta)


def _refuse(kwargs: dict[str, Any]) -> None:
    for name, value in kwargs.items():
        if value is not None:
            raise BadInput(f"kdn's model does not take {name}; leave it out")


def _turns(messages: Sequence[ChatMessage]) -> list[Message]:
    turns = []
    for message in messages:
        blocks = getattr(message, "blocks", ())
        is_text = all(isinstance(block, TextBlock) for block in blocks)
        if message.role.value not in _ROLES or message.content is None or not is_text:
            raise BadInput(
                f"a message of {message.role.value} that is no text of its own: kdn takes texts of"
                " system, user and assistant"
            )
        turns.append(Message(_ROLES[message.role.value], message.content))
    return turns
