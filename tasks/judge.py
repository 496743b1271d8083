"""A judge behind an OpenAI-compatible endpoint: `--reward judge:http://localhost:8000/v1`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from harness.core.errors import UsageError
from harness.core.ports import Response, Scored, Scorer
from tasks.learned import check_options

OPTIONS = ("judge_model", "judge_prompt", "judge_parallel", "judge_tokens", "reward_seconds")
KEY_VARIABLE = "JUDGE_API_KEY"  # sent as a bearer token where it is set; never recorded
HIGHEST = 10.0
PROMPT = (
    "Grade the answer to the question from 0 (useless) to 10 (perfect). Reply with the grade alone.\n\n"
    "Question:\n{prompt}\n\nAnswer:\n{response}\n\nGrade:"
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_SHOWN = 120  # characters of a reply in a failure


class Judge(Scorer):
    """Asks a chat model for a grade from 0 to 10; the reward is a tenth of the last number of its reply.

    Requests run beside one another, each under the time limit. A refusal, a timeout and a reply without a grade are
    failures of that response.
    """

    reward_range = (0.0, 1.0)

    def __init__(self, url: str, *, model: str | None, prompt: str, parallel: int, tokens: int, seconds: float) -> None:
        self._url, self._prompt, self._parallel = url.rstrip("/"), prompt, parallel
        self._tokens, self._seconds = tokens, seconds
        self._model = self._served() if model is None else model
        self.name = f"judge {self._model}"
        self.sha256 = hashlib.sha256(json.dumps([self._model, prompt, tokens]).encode()).hexdigest()

    def score(self, responses: Sequence[Response]) -> list[Scored]:
        if not responses:
            return []
        with ThreadPoolExecutor(min(self._parallel, len(responses))) as threads:
            return list(threads.map(self._one, responses))

    def _one(self, response: Response) -> Scored:
        asked = self._prompt.replace("{prompt}", response.prompt.messages[-1]["content"])
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": asked.replace("{response}", response.text)}],
            "temperature": 0,
            "max_tokens": self._tokens,
        }
        try:
            reply = self._post("chat/completions", body)
            said = str(reply["choices"][0]["message"]["content"] or "")
        except HTTPError as error:
            return Scored(value=None, why=f"the judge answered {error.code}")
        except TimeoutError:
            return Scored(value=None, why=f"the judge gave no answer within {self._seconds:g} s")
        except (OSError, HTTPException) as error:
            timed_out = isinstance(getattr(error, "reason", None), TimeoutError)
            why = f"gave no answer within {self._seconds:g} s" if timed_out else f"cannot be reached ({error})"
            return Scored(value=None, why=f"the judge {why}")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return Scored(value=None, why=f"the judge's reply cannot be read ({type(error).__name__})")
        found = _NUMBER.findall(said)
        grade = float(found[-1]) if found else None
        if grade is None or not 0 <= grade <= HIGHEST:
            return Scored(value=None, why=f"no grade from 0 to 10 in the judge's reply {said[:_SHOWN]!r}")
        return Scored(value=grade / HIGHEST)

    def _served(self) -> str:
        """The model that the endpoint serves; asked before anything runs."""
        try:
            listed = [str(m["id"]) for m in self._post("models", None)["data"]]
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"reward judge:{self._url}",
                f"it does not list its models ({type(error).__name__}: {error})",
                f"the address of an OpenAI-compatible API, up to /v1; a key goes into {KEY_VARIABLE}",
            ) from None
        if len(listed) != 1:
            raise UsageError(
                f"reward judge:{self._url}", f"it serves {len(listed)} models: {', '.join(listed[:8])}",
                "-t judge_model=NAME",
            )  # fmt: skip
        return listed[0]

    def _post(self, path: str, body: Mapping[str, Any] | None) -> Any:
        key = os.environ.get(KEY_VARIABLE)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self._url}/{path}", data=data, headers=headers)
        with urlopen(request, timeout=self._seconds) as reply:
            return json.loads(reply.read())


def judge(url: str, **options: Any) -> Judge:
    """The judge at `url`; every option is checked before anything runs."""
    check_options(f"judge:{url}", options, OPTIONS)
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise UsageError(f"reward judge:{url}", "not an address", "e.g. --reward judge:http://localhost:8000/v1")
    prompt = str(options.get("judge_prompt", PROMPT))
    for field in ("{prompt}", "{response}"):
        if field not in prompt:
            raise UsageError(f"judge_prompt={prompt[:60]!r}", f"it has no {field}, so the judge would not see it",
                             "a text with {prompt} and {response}")  # fmt: skip
    return Judge(
        url,
        model=None if options.get("judge_model") is None else str(options["judge_model"]),
        prompt=prompt,
        parallel=_whole("judge_parallel", options.get("judge_parallel", 8)),
        tokens=_whole("judge_tokens", options.get("judge_tokens", 16)),
        seconds=float(_whole("reward_seconds", options.get("reward_seconds", 60))),
    )


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100_000:
        raise UsageError(f"{name}={value!r}", "not a whole number from 1 on", f"e.g. -t {name}=16")
    return value
