"""
Sends one alert to one channel. A channel's address and secrets never appear in what is raised here.

A webhook is signed as `x-strata-signature: t=UNIX,v1=HEX`, the HMAC-SHA-256 of `UNIX.BODY`; it may come twice, and
its `id` says so.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import smtplib
import ssl
import time
from collections.abc import Callable
from email.message import EmailMessage

import httpx2
import msgspec

from proxy.config import Channel, Email, Slack, Smtp, Webhook

SEND_SECONDS = 10.0


class NotSent(Exception):
    """Why, in words for the operator."""


class Message(msgspec.Struct, frozen=True):
    """What a webhook gets as JSON."""

    id: str
    rule: str
    title: str
    subject: str
    period: str
    threshold: int
    at: str
    detail: dict[str, object]


async def send(
    channel: Channel,
    smtp: Smtp | None,
    message: Message,
    http: httpx2.AsyncClient,
    *,
    clock: Callable[[], float] = time.time,
) -> None:
    """Raises NotSent."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            if isinstance(channel, Email):
                if smtp is None:
                    raise NotSent("alerts.smtp is not configured")
                # A thread that hangs ends by its own socket's timeout; nobody waits longer than ours.
                await asyncio.to_thread(_mail, channel, smtp, message)
            else:
                await _post(channel, message, http, clock)
    except TimeoutError:
        raise NotSent(f"no answer within {SEND_SECONDS:g} s") from None


def signature(secret: bytes, at: int, body: bytes) -> str:
    mac = hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


async def _post(
    channel: Webhook | Slack, message: Message, http: httpx2.AsyncClient, clock: Callable[[], float]
) -> None:
    headers = {"content-type": "application/json"}
    if isinstance(channel, Slack):
        body = msgspec.json.encode({"text": _escaped(message.title)})
    else:
        body = msgspec.json.encode(message)
        if channel.secret is not None:
            headers["x-strata-signature"] = signature(channel.secret.reveal().encode(), int(clock()), body)
    try:
        answer = await http.post(channel.url.reveal(), content=body, headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NotSent(f"it could not be reached ({type(error).__name__})") from None
    if not 200 <= answer.status_code < 300:
        raise NotSent(f"it answered with HTTP {answer.status_code}")


def _mail(channel: Email, smtp: Smtp, message: Message) -> None:
    mail = EmailMessage()
    mail["Subject"] = f"[Strata] {message.title}"[:200]
    mail["From"] = smtp.sender
    mail["To"] = ", ".join(channel.to)
    mail["Message-ID"] = f"<{message.id}@strata>"
    lines = [
        message.title,
        "",
        *(f"{name}: {value}" for name, value in message.detail.items()),
        "",
        f"Rule: {message.rule}",
    ]
    mail.set_content("\n".join(lines))
    try:
        with _connect(smtp) as server:
            if smtp.user and smtp.password is not None:
                server.login(smtp.user, smtp.password.reveal())
            server.send_message(mail)
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(f"the mail server did not take it ({type(error).__name__})") from None


def _connect(smtp: Smtp) -> smtplib.SMTP:
    context = ssl.create_default_context()
    if smtp.security == "tls":
        return smtplib.SMTP_SSL(smtp.host, smtp.port, timeout=SEND_SECONDS, context=context)
    server = smtplib.SMTP(smtp.host, smtp.port, timeout=SEND_SECONDS)
    if smtp.security == "starttls":
        try:
            server.starttls(context=context)
        except (smtplib.SMTPException, OSError):
            server.close()
            raise
    return server


def _escaped(text: str) -> str:
    """Slack reads these three as its markup: https://docs.slack.dev/messaging/formatting-message-text#escaping"""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
