"""
What one attempt may cost at most, set aside before it goes out: at every budget of its caller and of its provider.

The worst case is bytes for tokens (a token is at least one), a ceiling for what is few bytes and many tokens, and the
longest answer. Where the client sets no limit and the longest answer is unknown or cannot be afforded, the provider is
given a limit that can; the caller is told, and a strict request is refused instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from proxy.config import Deployment
from proxy.errors import CallerError, PolicyError, UpstreamError
from proxy.exchange import Attempt, Budget, Caller, Hold
from proxy.metering.prices import PriceBook
from proxy.metering.usage import MAX_TIER_CHARS
from proxy.providers import ChatRequest, Notice, Target

DEFAULT_OUTPUT_BOUND = 16_384
"""Tokens reserved, and allowed, where neither the client nor the price table names a maximum."""
LEAST_OUTPUT_TOKENS = 16
"""An answer that is cut off earlier is worth nothing: then the request is refused."""
LIMIT_BYTES = 64
"""How much longer a request gets when a limit is put into it."""
IMAGE_TOKENS = 10_000
"""
Of one image, however few bytes it or its address has. OpenAI's largest is 10,000 patches, Anthropic's 4,784 tokens,
Google's 2,240; gpt-4o-mini alone counts up to 48,169, at a price that makes them as dear as 3,000 of gpt-4o's.
https://developers.openai.com/api/docs/guides/images-vision https://platform.claude.com/docs/en/build-with-claude/vision
"""
UNKNOWN_WINDOW_TOKENS = 1_000_000
"""A file behind an address or an id fills the context window at most; this one, where the table does not know it."""
PLAIN_PARTS = frozenset({"text", "refusal", "input_audio"})
"""Parts of a message whose bytes are more than their tokens."""

Holds = Callable[[Caller, int, tuple[Budget, ...]], Awaitable[Hold | None]]
"""Sets money aside for one attempt, at every budget of the caller and at these; PolicyError when it is not there."""


class Reserve:
    """`providers`: budgets by the name of the provider that they bind, whoever asks. Somebody else keeps it fresh."""

    def __init__(
        self, prices: PriceBook, hold: Holds, providers: Mapping[str, tuple[Budget, ...]], *, block_unpriced: bool
    ) -> None:
        self.providers = providers
        self.block_unpriced = block_unpriced
        self._prices = prices
        self._hold = hold

    async def set_aside(
        self, caller: Caller, attempt: Attempt, chat: ChatRequest, target: Target, *, strict: bool
    ) -> int | None:
        """
        The hold of the attempt. How many tokens an answer may have, if the provider must be told so; None if not.
        UpstreamError if the provider's budget is spent: another provider may still serve.
        """
        deployment = attempt.deployment
        bound = self.providers.get(deployment.provider.name, ())
        budgeted = caller.budgets or bound
        unlimited = False
        if budgeted:
            unlimited = attempt.output_tokens_bound > 0 and not (
                chat.get("max_completion_tokens") or chat.get("max_tokens")
            )
            attempt.input_tokens_bound += self._media_tokens(chat, deployment) + (LIMIT_BYTES if unlimited else 0)
        attempt.ceiling = state, ceiling, _ = self._prices.ceiling(
            deployment, attempt.input_tokens_bound, attempt.output_tokens_bound, attempt.asked_service_tier
        )
        if state == "unknown":
            raise self._unpriced(caller, attempt, bound)
        if not budgeted:
            return None
        unlimited = unlimited and state != "free"
        limit = DEFAULT_OUTPUT_BOUND if unlimited and target.max_output_tokens is None else None
        if limit is not None and strict:
            raise _limit_wanted(attempt.deployment)
        # Each budget may refuse once: the first says what it has left, and the next may have less.
        refusals_left = len(caller.budgets) + len(bound) if unlimited and not strict else 0
        while True:
            try:
                attempt.hold = await self._hold(caller, ceiling, bound)
                return limit
            except PolicyError as error:
                limit = self._affordable(attempt, chat, error) if refusals_left else 0
                if limit < LEAST_OUTPUT_TOKENS:
                    raise _spent(error) from error
                refusals_left -= 1
                attempt.output_tokens_bound = limit * choices(chat)
                ceiling = self._ceiling(attempt)

    def _ceiling(self, attempt: Attempt, output_tokens: int | None = None) -> int:
        """Nano-dollars, of what has a price."""
        tokens = attempt.output_tokens_bound if output_tokens is None else output_tokens
        ceiling = self._prices.ceiling(
            attempt.deployment, attempt.input_tokens_bound, tokens, attempt.asked_service_tier
        )
        if output_tokens is None:
            attempt.ceiling = ceiling
        return ceiling.nano_usd

    def _media_tokens(self, chat: ChatRequest, deployment: Deployment) -> int:
        for message in chat.get("messages", ()):
            if type(message.get("content")) is list:
                return media_tokens(chat, self._prices.context_window(deployment) or UNKNOWN_WINDOW_TOKENS)
        return 0

    def _affordable(self, attempt: Attempt, chat: ChatRequest, error: PolicyError) -> int:
        """Tokens of each answer that what is free of the spent budget would pay for."""
        free = int(str(error.details.get("free_nano_usd", 0)))
        input_cost = self._ceiling(attempt, 0)
        thousand = self._ceiling(attempt, 1000) - input_cost
        if thousand <= 0:
            return 0
        # One token less: each ceiling may have been rounded up.
        return max(0, ((free - input_cost) * 1000 // thousand - 1) // choices(chat))

    def _unpriced(self, caller: Caller, attempt: Attempt, bound: tuple[Budget, ...]) -> CallerError:
        name, tier = attempt.deployment.name, attempt.asked_service_tier
        what = f"{name} has no price"
        if tier and self._prices.current_lines(attempt.deployment):
            what = f'{what} for the service tier "{tier[:MAX_TIER_CHARS]}"'
        if caller.budgets:
            why = f'the key "{caller.name}" has a budget'
        elif bound:
            why = f'the provider "{bound[0].subject}" has a budget'
        else:
            why = "prices.on_missing is block"
        return CallerError(
            f"{what}, and {why}. The operator can add one under prices.models in config.yaml.",
            status=403,
            code="price_unknown",
            error_type="policy_budget_exceeded",
        )


def choices(chat: ChatRequest) -> int:
    """How many answers are made, and paid; `best_of` is of vLLM and its kin, which show fewer than they make."""
    return max(int(chat.get("n") or 1), int(chat.get("best_of") or 1))


def output_bound(chat: ChatRequest, target: Target) -> int:
    """
    Tokens of all answers to this request together, at most; of two limits a provider may heed either. Embeddings have
    none.
    """
    if "messages" not in chat:
        return 0
    most = max(chat.get("max_completion_tokens") or 0, chat.get("max_tokens") or 0) or target.max_output_tokens
    return int(most or DEFAULT_OUTPUT_BOUND) * choices(chat)


def media_tokens(chat: ChatRequest, window_tokens: int) -> int:
    """What images and files may count beyond their bytes; together no more than fits into the context window."""
    total = 0
    for message in chat.get("messages", ()):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type")
            if kind == "image_url":
                total += IMAGE_TOKENS
            elif kind not in PLAIN_PARTS:
                # Text in a file that came along is packed; its bytes count twice. One that did not may fill the window.
                total += len((part.get("file") or {}).get("file_data") or "") or window_tokens
    return min(total, window_tokens)


def limit_notice(tokens: int) -> Notice:
    return Notice(
        "max_completion_tokens",
        f"Set to {tokens}, the longest answer that is sure to be within budget, since the request has no limit.",
        lost=False,
    )


def _limit_wanted(deployment: Deployment) -> CallerError:
    return CallerError(
        f"The longest answer of {deployment.name} is not known, and there is a budget to keep. This request is strict, "
        "so no limit was set for it: send max_completion_tokens.",
        code="missing_required_parameter",
        param="max_completion_tokens",
    )


def _spent(error: PolicyError) -> PolicyError | UpstreamError:
    """A provider whose budget is spent is as good as one that fails: whoever comes next in the plan is asked."""
    if error.details.get("scope") != "provider":
        return error
    spent = UpstreamError(
        error.message,
        status=error.status,
        code=error.code,
        type=error.type,
        error_type=error.error_type,
        rest=False,
        sent=False,
    )
    spent.headers.update(error.headers)
    spent.details.update(error.details)
    return spent
