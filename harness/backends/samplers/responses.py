"""Responses under way: what was drawn for each, and which have ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from harness.backends.samplers.draw import draw
from harness.backends.samplers.routes import RouteTrace
from harness.backends.samplers.stopping import StopStrings
from harness.core.randomness import uniforms
from harness.core.shapes import Float, Int, Tensor
from harness.core.types import Completion


class Responses:
    """One row per response in the order of `keys`; `line` i of the batch is at work on row `rows[i]`.

    Between two checks nothing asks the device for a value.
    """

    def __init__(
        self,
        keys: Sequence[tuple[int, ...]],
        limit: int,
        eos: Int[Tensor, "E"],
        stop: StopStrings | None,
        routes: RouteTrace | None = None,
    ) -> None:
        device = eos.device
        self._routes = routes
        self._limit, self._eos, self._stop = limit, eos, stop
        self._draws = torch.from_numpy(uniforms(keys, limit)).to(device)
        shape = (len(keys), limit + 1)  # the last column takes what is drawn for lines that have ended
        self._tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self._logps = torch.zeros(shape, device=device)
        self._entropies = torch.zeros(shape, device=device)
        self._lengths = torch.zeros(len(keys), dtype=torch.long, device=device)
        self._stopped = torch.zeros(len(keys), dtype=torch.bool, device=device)
        self._rows = torch.empty(0, dtype=torch.long, device=device)
        self.alive = torch.empty(0, dtype=torch.bool, device=device)  # [L] still generating
        self._begun = 0
        self._age = 0  # an upper bound of the tokens that a line has
        self._recent: list[tuple[Tensor, Tensor]] = []  # tokens drawn since the last check, and for which lines
        self._history: dict[int, list[int]] = {}  # tokens by row, kept where stop strings are looked for

    @property
    def lines(self) -> int:
        return len(self._rows)

    @property
    def until_limit(self) -> int:
        """Tokens that may yet be drawn, those since the last check included, before a line is at the limit."""
        return self._limit - self._age

    def begin(self, count: int) -> None:
        """The next `count` rows get a line each, after the lines that there are."""
        new = torch.arange(self._begun, self._begun + count, device=self._rows.device)
        self._rows = torch.cat([self._rows, new])
        self.alive = torch.cat([self.alive, torch.ones_like(new, dtype=torch.bool)])
        self._begun += count

    def draw(self, logits: Float[Tensor, "L V"], temperature: float) -> Int[Tensor, "L"]:
        """One token per line, recorded for the lines that are alive."""
        rows, alive = self._rows, self.alive
        at = self._lengths[rows]
        drawn = draw(logits, self._draws[rows, at.clamp(max=self._limit - 1)], temperature)
        column = torch.where(alive, at, self._limit)
        self._tokens[rows, column] = drawn.token
        self._logps[rows, column] = drawn.logp
        self._entropies[rows, column] = drawn.entropy
        self._lengths[rows] = at + alive
        ended = torch.isin(drawn.token, self._eos) & alive
        self._stopped[rows] |= ended
        if self._stop is not None:
            self._recent.append((drawn.token, alive))
        self.alive = alive & ~ended & (at + 1 < self._limit)
        return drawn.token

    def read(self, routes: Int[Tensor, "L layers k"]) -> None:
        """Takes the routes of the tokens drawn last, which the model has read."""
        assert self._routes is not None
        self._routes.step(self._rows, self._lengths[self._rows] - 1, self.alive, routes)

    def check(self) -> list[bool]:
        """Which lines are alive, after looking for stop strings; the one place that waits for the device."""
        if self._stop is not None:
            self._find_stops(self._stop)
        alive, lengths = torch.stack([self.alive.long(), self._lengths[self._rows]]).tolist()
        self._age = max((length for a, length in zip(alive, lengths, strict=True) if a), default=0)
        return [bool(a) for a in alive]

    def keep(self, index: Int[Tensor, "L"]) -> None:
        """Line i becomes what line `index[i]` was; the others are dropped."""
        self._rows, self.alive = self._rows[index], self.alive[index]

    def completions(self, version: int) -> Iterator[Completion]:
        """The responses in the order of their keys, all of whose tokens come from weights `version`."""
        columns = (self._tokens, self._logps, self._entropies, self._lengths, self._stopped)
        lines = zip(*(c.tolist() for c in columns), strict=True)
        for row, (ids, logp, entropy, n, stopped) in enumerate(lines):
            yield Completion(
                token_ids=tuple(ids[:n]),
                logp=tuple(logp[:n]),
                entropy=tuple(entropy[:n]),
                segments=((n, version),),
                finish_reason="stop" if stopped else "length",
                routes=None if self._routes is None else self._routes.of(row, n),
            )

    def _find_stops(self, stop: StopStrings) -> None:
        recent = [(tokens.tolist(), drawn.tolist()) for tokens, drawn in self._recent]
        self._recent = []
        ends: list[tuple[int, int, int]] = []  # line, row, length
        for line, (row, alive) in enumerate(zip(self._rows.tolist(), self.alive.tolist(), strict=True)):
            ids = self._history.setdefault(row, [])
            known = len(ids)
            ids += [tokens[line] for tokens, drawn in recent if drawn[line]]
            end = stop.end(ids, known, over=not alive) if len(ids) > known else None
            if end is not None:
                ends.append((line, row, end))
        if ends:
            lines, rows, lengths = torch.tensor(ends, device=self._rows.device).T
            self.alive[lines] = False
            self._stopped[rows] = True
            self._lengths[rows] = lengths
