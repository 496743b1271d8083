"""The cold start `tiny-turns`: supervised training on demonstrations of the games `guess` and `calculator`.

The demonstrations are those of a mediocre player: it knows the rules, often forgets what the replies said, and often
answers without calling the tool. So the games are won sometimes, and reinforcement learning has something to find.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch

from harness.core.spec import TemplateSpec
from harness.core.types import Done, Observation
from harness.models.coldstart import BATCH_SIZE, LEARNING_RATE, learn, padded, sample_ids, say
from harness.models.template import encode, encode_reply
from harness.models.tiny import EOS_ID, tiny_model, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.ports import Split, Task
    from harness.core.types import Prompt
    from tasks.calculator import CalculatorTask
    from tasks.guess import GuessTask

HEEDS = 0.25  # share of the guesses that keep to what the replies said
DIRECT = 0.4  # share of the sums that are answered by a digit at random
STOP_FROM = {"guess": 0.34, "calculator": 0.25}  # pass@1 at which the games are known well enough
FIRST_LOOK, LOOK_EVERY, MAX_STEPS = 200, 50, 1000
LOOK_PROMPTS, FINAL_PROMPTS, MAX_NEW_TOKENS = 256, 1024, 12
_MEAN_LEARNED = 10.0  # constant denominator of the loss, tokens per row
_PLAIN = TemplateSpec()


def demonstration(
    task: Task, prompt: Prompt, turns: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[bool]]:
    """Tokens of an episode with these turns, and which of them are to be learned."""
    ids = list(encode(tokenizer, _PLAIN, prompt.messages))
    mask, state = [False] * len(ids), task.start(prompt)
    for text in turns:
        said = [*tokenizer.encode(text, add_special_tokens=False), EOS_ID]
        state, reply = task.step(state, text, "stop")
        ids, mask = ids + said, mask + [True] * len(said)
        if isinstance(reply, Done):
            break
        seen = encode_reply(tokenizer, _PLAIN, prompt.messages, reply.messages, EOS_ID)
        ids, mask = [*ids, *seen], mask + [False] * len(seen)
    return ids, mask


def guesses(task: GuessTask, prompt: Prompt, draw: random.Random) -> list[str]:
    """The turns of a mediocre player of `guess`."""
    chosen, hidden = prompt.answer
    state, turns = task.start(prompt), []
    for _ in range(task.info.max_turns):
        number = draw.choice(state.left if draw.random() < HEEDS and state.left else chosen)
        turns.append(task.written(number))
        if number == hidden:
            break
        state, _ = task.step(state, turns[-1], "stop")
    return turns


def calls(task: CalculatorTask, prompt: Prompt, draw: random.Random) -> list[str]:
    """The turns of a mediocre user of `calculator`."""
    if draw.random() < DIRECT:
        return [f"# {draw.randrange(10)}"]
    return [*task.calls(prompt), task.gold(prompt)]


def play(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, split: Split, first: int, count: int
) -> float:
    """pass@1 over `count` items, one episode each."""
    size = task.info.sizes.get(split)
    prompts = [task.item(split, first + i if size is None else i % size) for i in range(count)]
    contexts = [list(encode(tokenizer, _PLAIN, p.messages)) for p in prompts]
    states = [task.start(p) for p in prompts]
    generator, right, going = torch.Generator().manual_seed(first), 0, list(range(count))
    while going:
        said = sample_ids(model, [contexts[i] for i in going], MAX_NEW_TOKENS, generator)
        still = []
        for i, ids in zip(going, said, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            states[i], reply = task.step(states[i], text, "stop" if ids[-1] == EOS_ID else "length")
            if isinstance(reply, Observation):
                contexts[i] += [*ids, *encode_reply(tokenizer, _PLAIN, prompts[i].messages, reply.messages, ids[-1])]
                still.append(i)
            else:
                right += reply.grade.correct
        going = still
    return right / count


def train_turns(seed: int = 0) -> tuple[PreTrainedModel, dict[str, Any]]:
    """One cold start for both games, stopped on what it wins on the validation split."""
    from tasks.calculator import CalculatorTask
    from tasks.guess import GuessTask

    guess, calculator = GuessTask(), CalculatorTask()
    games: dict[str, Task] = {"guess": guess, "calculator": calculator}
    tokenizer, model, draw = tiny_tokenizer(), tiny_model(seed), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    size = guess.info.sizes["train"]
    assert size is not None
    for step in range(1, MAX_STEPS + 1):
        rows = []
        for i in range(BATCH_SIZE // 2):
            prompt = guess.item("train", draw.randrange(size))
            rows.append(demonstration(guess, prompt, guesses(guess, prompt, draw), tokenizer))
            prompt = calculator.item("train", ((seed + 1) << 40) + step * BATCH_SIZE + i)
            rows.append(demonstration(calculator, prompt, calls(calculator, prompt, draw), tokenizer))
        loss = learn(model, optimizer, *padded(rows), BATCH_SIZE * _MEAN_LEARNED)
        if step < FIRST_LOOK or step % LOOK_EVERY:
            continue
        won = {n: play(model, tokenizer, task, "validation", step << 30, LOOK_PROMPTS) for n, task in games.items()}
        say(f"turns step {step} loss {loss:.3f} " + " ".join(f"{name} {x:.3f}" for name, x in won.items()))
        if all(won[name] >= least for name, least in STOP_FROM.items()):
            final = {n: play(model, tokenizer, task, "validation", 1 << 41, FINAL_PROMPTS) for n, task in games.items()}
            return model, {"seed": seed, "steps": step, "episodes": FINAL_PROMPTS, "pass@1": final}
    raise SystemExit(f"turns: pass@1 did not reach {STOP_FROM} within {MAX_STEPS} steps")
