"""An OpenAI-compatible server: its address, how it is asked, what each failure means, and what is tried again.

The key goes into a header, and into nothing else: no message, no log, no repr. Left out: what is asked for (openai.py).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import re
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from grpo_math.types import EngineError, UserError

T = TypeVar("T")

KEY_NAME = "OPENAI_API_KEY"
CONNECT_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
LONGEST_WAIT_S = 120.0  # of what a server asks for; the same is asked for again after it
AGAIN = frozenset({408, 409, 425, 429})  # and all from 500 on: the same request may well be answered later
NO_CREDIT = ("insufficient_quota", "insufficient_balance", "billing_hard_limit_reached")  # which say 429 too
LOCAL = ("localhost", "127.0.0.1", "::1")


class Failed(Exception):
    """There was no answer this time. wait_s: how long the server asks to be left alone."""

    def __init__(self, text: str, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Refused(Exception):
    """The server says no, and would say it again. status: HTTP's; body: its words in full."""

    def __init__(self, text: str, status: int, body: str) -> None:
        super().__init__(text)
        self.status, self.body = status, body


def key_from(name: str = KEY_NAME) -> str | None:
    """The key in the environment variable `name`; None where there is none, as most local servers want it.

    Raises UserError for one that no header can carry."""
    key = os.environ.get(name, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {name} holds no key: it has blanks or other odd characters in it")
    return key or None


class GaveUp(EngineError):
    """A request has failed as often as it may."""


class Api:
    """url: the address without what is secret in it, for messages and manifests."""

    def __init__(self, base_url: str, key: str | None, key_name: str, request_s: float, retries: int) -> None:
        try:
            parts = urlsplit(base_url.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if host is None or parts.scheme not in ("http", "https") or port == 0:
            shown = re.sub(r"//[^/]*@", "//", base_url.partition("?")[0])
            raise UserError(f"--base-url {shown!r} is no address of a server; give one like http://localhost:8000/v1")
        # the API's root is written with its version everywhere; who leaves the path out means it too
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/') or '/v1'}"
        self.request_s, self.retries, self.key_name, self.has_key = request_s, retries, key_name, key is not None
        self._query = f"?{parts.query}" if parts.query else ""
        self._headers: dict[str, str] = {}
        if key is not None:
            self._headers = {"Authorization": f"Bearer {key}"}
        elif parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers = {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}
        secrets = [key, parts.password, *(header.split()[1] for header in self._headers.values())]
        # not a version, say: to hide each "1" would spoil a server's words
        secrets += [value for _, _, value in (p.partition("=") for p in parts.query.split("&")) if len(value) >= 8]
        self._secrets = sorted({s for secret in secrets if secret for s in (secret, unquote(secret))}, key=len)[::-1]
        self._proxy = _proxy(parts.scheme, host)

    def session(self) -> aiohttp.ClientSession:
        # whoever asks limits how many are in flight; to wait for a connection would count as the server's time
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=self._headers)

    async def ask(
        self,
        http: aiohttp.ClientSession,
        path: str,
        body: Mapping[str, Any] | None = None,
        within_s: float | None = None,
        root: str | None = None,
    ) -> Any:
        """The JSON of one answer. body: POST it. root: asks there instead of at the API's own. Raises Failed, Refused,
        and EngineError where the account is empty."""
        seconds = self.request_s if within_s is None else min(within_s, self.request_s)
        limit = aiohttp.ClientTimeout(total=seconds, sock_connect=min(CONNECT_S, seconds))
        method, url = "GET" if body is None else "POST", f"{root or self.url}{path}{self._query}"
        try:
            async with http.request(
                method, url, json=body, timeout=limit, allow_redirects=False, proxy=self._proxy
            ) as answer:
                raw, status, headers = await answer.read(), answer.status, answer.headers
        except TimeoutError:
            raise Failed(f"no answer to {path} within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            # `from None`: the error itself may show the whole address
            raise Failed(f"{path}: {self.hide(str(error)) or type(error).__name__}") from None
        if status != 200:
            self._refuse(path, status, raw, headers)
        try:
            found = json.loads(raw)
        except ValueError:
            raise Failed(f"{path} gave broken JSON: {self.hide(repr(raw[:80]))}") from None
        if isinstance(found, dict) and found.get("error"):  # some say it with status 200 once they have begun
            raise Failed(f"{path}: {self.hide(_words(raw))}")
        return found

    async def insist(
        self,
        http: aiohttp.ClientSession,
        path: str,
        body: Mapping[str, Any],
        what: str,
        read: Callable[[Any], T],
        root: str | None = None,
    ) -> T:
        """`read` of the answer, asked for again with growing pauses after each Failed. Raises GaveUp after the last."""
        for attempt in count():
            try:
                return read(await self.ask(http, path, body, root=root))
            except Failed as error:
                if attempt >= self.retries:
                    raise GaveUp(
                        f"{self.url}: {what} failed {attempt + 1} times, the last time so: {self.hide(str(error))}. "
                        "All answers so far are kept, and the same command goes on from here"
                    ) from None
                await asyncio.sleep(pause(attempt, error.wait_s))
        raise AssertionError("count() never ends")

    def hide(self, text: str) -> str:
        """The text without secrets, whole ones or a server's half-masked ones."""
        text = re.sub(r"[\w-]*\*{3,}[\w-]*", "[hidden]", text)
        for secret in self._secrets:
            text = text.replace(secret, "[hidden]")
        return text

    def user_error(self, refused: Refused) -> UserError:
        """What the user can do about a refusal that every request would get."""
        said = f"status {refused.status}: {refused}"
        if refused.status in (401, 403):
            mend = f"takes no request with the key in {self.key_name}; put a valid one there"
            if not self.has_key:
                mend = f"wants a key; put it into the environment variable {self.key_name}"
            return UserError(f"{self.url} {mend} ({said})")
        if 300 <= refused.status < 400:
            return UserError(f"--base-url {self.url} has moved ({said}); give the new address")
        return UserError(f"{self.url} takes no such request ({said})")

    def _refuse(self, path: str, status: int, raw: bytes, headers: Mapping[str, str]) -> NoReturn:
        body, words = raw.decode(errors="replace"), self.hide(_words(raw))
        if status == 402 or (status == 429 and any(code in body.lower() for code in NO_CREDIT)):
            raise EngineError(
                f"{self.url}: the account has no credit left ({words}); once it has, the same command goes on from here"
            )
        if status in AGAIN or status >= 500:
            raise Failed(f"{path} gave status {status}: {words}", retry_after(headers.get("Retry-After"), time.time()))
        if 300 <= status < 400:
            words = f"to {self.hide(headers.get('Location', 'nowhere'))}"
        raise Refused(words, status, body)


def retry_after(header: str | None, now: float) -> float:
    """Seconds from `now` (a Unix time) that a Retry-After asks for, as a number or as a date (RFC 9110, 10.2.3); 0 for
    none, or for one that cannot be read."""
    try:
        seconds = float(header or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(header)).timestamp() - now
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if math.isfinite(seconds) else 0.0


def pause(attempt: int, wait_s: float) -> float:
    """Seconds before the try after `attempt`, 0 for the first: doubled each time, and drawn, so that not all that
    failed together come back together. No shorter than what the server asks for."""
    spread = random.uniform(0.5, 1.0)
    return max(spread * min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S), wait_s + spread * min(wait_s, FIRST_PAUSE_S))


def _proxy(scheme: str, host: str) -> str | None:
    """The environment's proxy. Not aiohttp's trust_env: that looks into ~/.netrc too, and then refuses our header."""
    if host in LOCAL or proxy_bypass(host):
        return None
    proxy = getproxies().get(scheme)
    return proxy if proxy and proxy.startswith("http") else None


def _words(raw: bytes) -> str:
    """What an error says, in one line."""
    text = raw.decode(errors="replace")
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = error.get("message", text) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:300] or "(no words)"
