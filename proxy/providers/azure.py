"""
Azure OpenAI: OpenAI's own API at addresses of Azure's. What differs is where a request goes.

With an `api_version` of a date the deployment is in the path, and the body's `model` is not read; without one, or with
`preview`, it is the `model` of Azure's v1 API. Its content filter speaks in fields of its own, in a first chunk without
choices, and in a 400 with an `innererror`.
learn.microsoft.com/en-us/azure/ai-foundry/openai/reference and …/api-version-lifecycle
"""

from __future__ import annotations

import re

import msgspec

from proxy.errors import CallerError, GatewayFault
from proxy.providers import ChatRequest, Json, Target, UpstreamRequest, openai

DATED = re.compile(r"20\d\d-\d\d-\d\d(-preview)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Translator(openai.Translator):
    auth = "entra"

    def list_models(self, target: Target) -> UpstreamRequest:
        version = target.options.get("api_version", "")
        dated = DATED.fullmatch(version)
        return UpstreamRequest(f"/openai/models?api-version={version}" if dated else "/openai/v1/models", {})

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        request = super().encode_request(chat, target)
        return msgspec.structs.replace(request, path=_path(target, "chat/completions"))

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        request = super().encode_embeddings(asked, target)
        return msgspec.structs.replace(request, path=_path(target, "embeddings"))


def _path(target: Target, operation: str) -> str:
    deployment, version = target.model, target.options.get("api_version", "")
    if not _NAME.fullmatch(deployment):
        # it becomes part of an address, and a pattern lets the client choose it
        raise CallerError("model is not the name of an Azure deployment: letters, digits, ., - and _.", param="model")
    if DATED.fullmatch(version):
        return f"/openai/deployments/{deployment}/{operation}?api-version={version}"
    if version not in ("", "v1", "preview"):
        raise GatewayFault(
            "This provider's api_version is not one of Azure's: mend it in config.yaml, as 2024-10-21 or preview, "
            "or leave it out for the v1 API.",
            status=502,
            code="gateway_config",
            error_type="gateway_config",
        )
    return f"/openai/v1/{operation}" + ("?api-version=preview" if version == "preview" else "")
