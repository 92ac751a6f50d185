"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them: adapters without a stop.

Only folders in `serve.adapters_folder` are read, and without it no name comes or goes.  Where the store has
an admin key it is asked for, and without one no caller with a key may: what a name answers for every caller
is decided by the one who loads its adapter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field

from kdn.errors import WeightsError
from kdn.machine.files import expanded
from kdn.model import LoadedModel
from kdn.serve.auth import ADAPTER_PATHS, may_operate
from kdn.serve.errors import Refused
from kdn.serve.limits import Name, bounded_router
from kdn.serve.openai.context import RequestContext, refuse_unsupported
from kdn.serve.service import ServedModel

__all__ = ["adapter_routes"]

_FILES = ("adapter_config.json", "adapter_model.safetensors")


class _AdapterBody(BaseModel):
    model_config = ConfigDict(extra="allow")

    lora_name: Name = Field(min_length=1)
    """What requests name as their model."""


class LoadAdapterBody(_AdapterBody):
    """An adapter in PEFT's format, in a folder that the server may read."""

    lora_path: str = Field(min_length=1, max_length=4096)
    """The folder: within `serve.adapters_folder`, from which a relative path goes on."""
    load_inplace: bool = False
    """Let the name mean these weights from now on, if it means others."""
    base_model_name: Name | None = None
    """The model that it belongs to; the first one where nothing is said."""


class UnloadAdapterBody(_AdapterBody):
    """The adapter of that name."""

    lora_int_id: int | None = None
    """Of vLLM's clients; the name says it all."""


def adapter_routes(context: RequestContext, *, has_admin: bool) -> APIRouter:
    """The routes, bound to one server's parts. With `has_admin` they ask for the admin key."""
    router = bounded_router()
    load_path, unload_path = ADAPTER_PATHS

    def check(body: _AdapterBody, http: HttpRequest) -> Path:
        if not may_operate(http.scope, context.settings, has_admin=has_admin):
            raise Refused(
                "adapters are the admin's: send the admin key of the store"
                + ("" if has_admin else ", once serve.store_key (KDN_SERVE_STORE_KEY) is set"),
                status=403,
            )
        refuse_unsupported(body.model_extra)
        if context.settings.adapters_folder is None:
            raise Refused(
                "adapters stay as they are here: set serve.adapters_folder to the folder that holds them",
                status=403,
            )
        return context.settings.adapters_folder

    async def done(work: Callable[[], None], name: str, what: str) -> Response:
        try:
            await context.in_thread(work)
        except WeightsError as error:
            raise Refused(str(error), param="lora_path") from error
        said = f"Success: LoRA adapter '{name}' {what} successfully."
        return Response(said, media_type="text/plain")

    @router.post(load_path)
    async def load(body: LoadAdapterBody, http: HttpRequest) -> Response:
        allowed = check(body, http)
        return await done(_loads(context, body, allowed), body.lora_name, "added")

    @router.post(unload_path)
    async def unload(body: UnloadAdapterBody, http: HttpRequest) -> Response:
        check(body, http)
        return await done(_unloads(context, body.lora_name), body.lora_name, "removed")

    return router


def _loads(context: RequestContext, body: LoadAdapterBody, allowed: Path) -> Callable[[], None]:
    name, model = body.lora_name, _base(context, body.base_model_name)
    loading = _loading(model)
    owner = context.models.adapted(name) or context.models.by_name.get(name)
    if owner is not None and (name == owner.name or owner is not model):
        raise Refused(
            f"{name!r} is answered by {owner.name}; choose another name", param="lora_name"
        )
    if owner is not None and not body.load_inplace:
        raise Refused(
            f"the LoRA adapter {name!r} has already been loaded; set load_inplace to load it again",
            param="lora_name",
        )
    folder = _folder(allowed, body.lora_path)
    return lambda: loading.load_adapter(name, folder)


def _unloads(context: RequestContext, name: str) -> Callable[[], None]:
    owner = context.models.adapted(name)
    if owner is None:
        raise Refused(
            f"the LoRA adapter {name!r} cannot be found; /v1/models lists those that are loaded",
            param="lora_name",
            code="model_not_found",
            status=404,
        )
    loading = _loading(owner)
    return lambda: loading.unload_adapter(name)


def _base(context: RequestContext, name: str | None) -> ServedModel:
    found, adapter = context.find(name)
    if adapter is not None:
        raise Refused(f"{name!r} is an adapter; name the model below it", param="base_model_name")
    return found


def _loading(model: ServedModel) -> LoadedModel:
    if model.loading is None:
        raise Refused(f"{model.name} takes no adapters while it runs; start the server with them")
    return model.loading


def _folder(allowed: Path, asked: str) -> Path:
    """The folder, links followed. Raises Refused for one outside what the settings allow."""
    root = expanded(allowed).resolve()
    folder = root / asked.replace("\0", "\ufffd")
    inside = [path.resolve() for path in (folder, *(folder / name for name in _FILES))]
    if not all(path.is_relative_to(root) for path in inside):
        raise Refused(
            f"{asked!r} is not within the folder that adapters may be loaded from",
            param="lora_path",
            status=403,
        )
    return inside[0]
