"""
LangChain's standard tests of a chat model, with its OpenAI client pointed at a gateway. `test_langchain.py` runs this
file in an environment of its own; STRATA_BASE_URL, STRATA_KEY and STRATA_MODEL say where, and STRATA_REFUSED, a JSON
object, in which tests the gateway has to refuse what is asked, and in which words.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

import httpx
import openai
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738"
    "550000000049454e44ae426082"
)
PAGE = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"


@pytest.fixture(autouse=True)
def media_without_the_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests fetch a picture and a document from the web to send them on as bytes."""

    def get(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(200, content=PAGE if url.endswith(".pdf") else PIXEL)

    monkeypatch.setattr(httpx, "get", get)


@pytest.fixture(autouse=True)
def refusals_where_nothing_else_is_possible(request: pytest.FixtureRequest) -> None:
    refused: dict[str, str] = json.loads(os.environ.get("STRATA_REFUSED", "{}"))
    if words := refused.get(request.node.name):
        expected = pytest.RaisesExc(openai.BadRequestError, match=re.escape(words))
        request.applymarker(pytest.mark.xfail(raises=expected, strict=True, reason=words))


class TestThroughTheGateway(ChatModelIntegrationTests):  # type: ignore[misc]
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        model: type[BaseChatModel] = ChatOpenAI
        return model

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "base_url": os.environ["STRATA_BASE_URL"],
            "api_key": os.environ["STRATA_KEY"],
            "model": os.environ["STRATA_MODEL"],
            "default_headers": {"x-strata-sim": "speed=0"},
            "stream_usage": True,
            "max_retries": 0,
        }

    @property
    def supports_image_inputs(self) -> bool:
        return True

    @property
    def supports_pdf_inputs(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_tool_message(self) -> bool:
        return True

    @property
    def has_tool_choice(self) -> bool:
        return True
