"""A closed loop of users on a llama-server: each sends a request, waits for its tokens, sends the next.

Needs httpx, the extra [serve]. docs/serving.md says why none of the load generators on PyPI is used.
"""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError

try:
    import httpx
except ImportError as problem:
    raise HbfError("the workload serve needs httpx", "`pip install 'hbf-fuse[serve]'`") from problem

HEALTH_SECONDS = 0.01
"""Between two questions to a server that is loading. So much later at most its being ready is noticed."""

_MAX_LINE = 1 << 20
_MAX_SAID = 300


@dataclass
class Answer:
    """One request. number: of its prompt. Times are CLOCK_MONOTONIC in ns; came_ns: when each token came.
    error: why it failed, or "".
    """

    number: int
    sent_ns: int
    came_ns: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    error: str = ""

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token: from sending the request; None if none came."""
        return (self.came_ns[0] - self.sent_ns) / 1e9 if self.came_ns else None

    @property
    def tpot_seconds(self) -> float | None:
        """Time per output token after the first; None of fewer than two."""
        if len(self.came_ns) < 2:
            return None
        return (self.came_ns[-1] - self.came_ns[0]) / 1e9 / (len(self.came_ns) - 1)


@dataclass(frozen=True)
class Level:
    """So many users at once. client_cpu_seconds: CPU time of this process meanwhile."""

    concurrency: int
    start_ns: int
    end_ns: int
    answers: list[Answer]
    client_cpu_seconds: float

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    @property
    def good(self) -> list[Answer]:
        """Those that did not fail."""
        return [answer for answer in self.answers if not answer.error]

    def full_windows(self) -> list[tuple[int, int]]:
        """When all users were decoding at once: begin and end in ns, in order. Each from a token to a token,
        so that a window holds whole steps.
        """
        edges = [(answer.came_ns[0], 1) for answer in self.good if answer.came_ns]
        edges += [(answer.came_ns[-1], -1) for answer in self.good if answer.came_ns]
        found, decoding, since = list[tuple[int, int]](), 0, 0
        for moment, step in sorted(edges):
            if decoding == self.concurrency and moment > since:
                found.append((since, moment))
            decoding += step
            since = moment
        return found

    def step_seconds(self, windows: Sequence[tuple[int, int]]) -> float | None:
        """What a step of the server takes, which gives every user a token: from token to token of each user
        in these windows, mean; None if there are none.
        """
        steps = nanoseconds = 0
        for start, end in windows:
            for answer in self.good:
                inside = [moment for moment in answer.came_ns if start <= moment <= end]
                if inside:
                    steps += len(inside) - 1
                    nanoseconds += inside[-1] - inside[0]
        return nanoseconds / steps / 1e9 if steps else None


def digest(answers: Sequence[Answer]) -> str:
    """SHA-256 of all their tokens: equal where the same model gave the same output."""
    tokens = [answer.tokens for answer in sorted(answers, key=lambda answer: answer.number)]
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def prompts(vocabulary: int, tokens: int, seed: int) -> Iterator[list[int]]:
    """Prompts of so many random tokens, without end, the same for a seed. No two begin alike, so no cache of
    prompts helps.
    """
    chance = random.Random(seed)  # noqa: S311 - the same each time
    while True:
        yield [chance.randrange(vocabulary) for _ in range(tokens)]


class Server:
    """A llama-server that listens on a UNIX socket."""

    def __init__(self, client: httpx.AsyncClient, output_tokens: int, timeout_seconds: float) -> None:
        self._client = client
        self._output_tokens = output_tokens
        self._timeout = timeout_seconds

    async def until_ready(self) -> None:
        """Return when it has loaded its model."""
        while True:
            try:
                if (await self._client.get("/health")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            await asyncio.sleep(HEALTH_SECONDS)

    async def ask(self, prompt: list[int], number: int = 0) -> Answer:
        """One request: greedy, of a fixed length, without any cache. It fails by saying why in `error`."""
        body = {
            "prompt": prompt,
            "n_predict": self._output_tokens,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        answer = Answer(number, time.monotonic_ns())
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", "/completion", json=body) as reply,
            ):
                if reply.status_code != httpx.codes.OK:
                    said = (await reply.aread())[:_MAX_SAID].decode(errors="replace")
                    answer.error = f"{reply.status_code} {_reason(said)}"
                    return answer
                async for event in _events(reply):
                    _take(event, answer)
        except TimeoutError:
            answer.error = f"no answer within {self._timeout:g} s"
        except (httpx.HTTPError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"[:_MAX_SAID]
        if not answer.error and len(answer.came_ns) != self._output_tokens:
            answer.error = f"{len(answer.came_ns)} of {self._output_tokens} tokens came"
        return answer

    async def level(self, users: int, requests: int, prompts: Iterator[list[int]]) -> Level:
        """So many requests in all, from users who each have one at a time."""
        waiting = [(number, next(prompts)) for number in reversed(range(requests))]
        answers: list[Answer] = []

        async def user() -> None:
            while waiting:
                number, prompt = waiting.pop()
                answers.append(await self.ask(prompt, number))

        start_ns, cpu = time.monotonic_ns(), time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(users):
                group.create_task(user())
        return Level(users, start_ns, time.monotonic_ns(), answers, time.process_time() - cpu)


@asynccontextmanager
async def at_socket(socket: Path, output_tokens: int, timeout_seconds: float) -> AsyncIterator[Server]:
    """A server by its socket. timeout_seconds: of one request."""
    # A connection for each request: the server closes idle ones, perhaps just when the next is sent.
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_keepalive_connections=0))
    # No proxy of the environment may come between.
    async with httpx.AsyncClient(
        transport=transport, base_url="http://llama-server", timeout=timeout_seconds, trust_env=False
    ) as client:
        yield Server(client, output_tokens, timeout_seconds)


async def _events(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of a reply. ValueError for what is none."""
    async for line in reply.aiter_lines():
        if len(line) > _MAX_LINE:
            raise ValueError("a line without end")
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line.removeprefix("data: "))
        if not isinstance(event, dict):
            raise ValueError("not an event")
        yield event


def _take(event: dict[str, Any], answer: Answer) -> None:
    """Note the tokens of an event. One whose text is not whole yet comes with the next."""
    now = time.monotonic_ns()
    if "error" in event:
        answer.error = _reason(json.dumps(event))
        return
    tokens = event.get("tokens") or []
    answer.tokens += [token for token in tokens if isinstance(token, int)]
    so_far = event.get("tokens_predicted")
    fresh = so_far - len(answer.came_ns) if isinstance(so_far, int) else len(tokens)
    answer.came_ns += [now] * min(fresh, _MAX_LINE)


def _reason(said: str) -> str:
    """The message in llama-server's JSON of an error."""
    try:
        return str(json.loads(said)["error"]["message"])[:_MAX_SAID]
    except (ValueError, KeyError, TypeError):
        return said[:_MAX_SAID]
