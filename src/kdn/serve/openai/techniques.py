"""From the `kdn` object of a body to the options that a request carries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kdn.api.steering import is_steered
from kdn.core import Blend, Prefix, Prompt, Share
from kdn.errors import BadInput
from kdn.model import Document, Message
from kdn.reuse.steer import Steer, steer_of
from kdn.serve.errors import Refused
from kdn.serve.openai.requests import KdnOptions
from kdn.serve.service import ServedModel

__all__ = ["chat_techniques", "text_techniques"]


def chat_techniques(
    options: KdnOptions,
    model: ServedModel,
    prompt: Prompt,
    messages: Sequence[Message],
    documents: Sequence[Document],
    adapter: str | None,
) -> tuple[object, ...]:
    """Of a conversation. Raises Refused for spans that are not in it."""
    return (*_reuse(options), *_steering(options, model, prompt, messages, documents, adapter))


def text_techniques(options: KdnOptions) -> tuple[object, ...]:
    """Of a plain completion. Raises Refused for spans: there is no message or document to mark."""
    if is_steered(options.steer, report=False) or options.steer_report:
        raise Refused("steer marks messages and documents: use chat/completions", param="kdn.steer")
    return _reuse(options)


def _reuse(options: KdnOptions) -> tuple[object, ...]:
    if options.ratio != "auto" and options.reuse != "blend":
        raise Refused('ratio is of blending: say "reuse": "blend" too', param="kdn.ratio")
    if options.share is not None and options.reuse is False:
        raise Refused(
            "share asks for stored KV and reuse refuses it: leave one out", param="kdn.share"
        )
    techniques: list[object] = []
    if options.max_kl is not None or options.load_within_s is not None:
        techniques.append(Prefix(options.max_kl, options.load_within_s))
    if options.reuse == "blend":
        ratio = None if options.ratio == "auto" else options.ratio
        techniques.append(Blend(ratio, options.collection))
    if options.share is not None:
        techniques.append(Share(options.share))
    return tuple(techniques)


def _steering(
    options: KdnOptions,
    model: ServedModel,
    prompt: Prompt,
    messages: Sequence[Message],
    documents: Sequence[Document],
    adapter: str | None,
) -> tuple[Steer, ...]:
    if not is_steered(options.steer, report=False):
        if options.steer_report:
            raise Refused(
                "steer_report tells of steering: give steer too", param="kdn.steer_report"
            )
        return ()
    given: object = options.steer
    if isinstance(options.steer, list):
        given = [span.model_dump(exclude_none=True) for span in options.steer]
    try:
        places = model.prompts.places(prompt, messages, documents)
        return (steer_of(given, places, partial(model.steer_recipe, adapter)),)
    except BadInput as error:
        raise Refused(str(error), param="kdn.steer") from error
