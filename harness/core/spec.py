"""Specs: plain, frozen, hashable data from which everything is run. No torch here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.core.errors import UsageError, near

Bracket = Literal["outcome", "dense", "control"]
# matched and published are named rosters; stressed and tuned arms have recipe values of their own, as a factor of an
# ablation or as what a search chose
Roster = Literal["matched", "published", "stressed", "tuned"]
OWN_RECIPE: tuple[Roster, ...] = ("stressed", "tuned")
Dtype = Literal["float32", "bfloat16", "float16"]
RolloutDtype = Literal["float32", "bfloat16", "float16", "int8"]
# what an arm may have for itself; where and on how many threads it runs is the machine's
OWN_BACKEND = ("sampler", "dtype", "fp32_head", "attention", "engine", "update")


DATA_FILES = ("test_file", "reward_function")  # task parameters that name a file, whose content is in `data_sha256`


class Spec(BaseModel):
    """Base: frozen, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TemplateSpec(Spec):
    """How a prompt becomes tokens and where a response ends."""

    style: Literal["auto", "chat", "plain"] = "auto"  # auto: chat where the tokenizer has a chat template
    system: str | None = None
    stop: tuple[str, ...] = ()  # stop strings besides the end-of-sequence tokens


class TaskSpec(Spec):
    """A task by name with its parameters."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    template: TemplateSpec = TemplateSpec()
    data_sha256: str | None = None  # of the data file, for a task read from one


class ModelSpec(Spec):
    """A model by name: `tiny`, `smollm2-135m`, a Hugging Face id or a local path."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class LoraSpec(Spec):
    """Train low-rank adapters of the linear layers instead of the weights themselves."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)  # the adapter's output is scaled by alpha / rank
    targets: str | tuple[str, ...] = "all-linear"  # names of modules; all-linear: every one but the output head


class Recipe(Spec):
    """What a model needs to train at all; the same for every arm of a study."""

    prompts_per_step: int = Field(32, ge=1)  # prompts of one rollout batch
    max_new_tokens: int = Field(256, ge=1)  # hard limit of a response, of each turn where a task has several
    pool_size: int | None = Field(None, ge=1)  # distinct prompts to train on; None: the whole train split
    pool: int = Field(0, ge=0)  # which pool of that size: another number is another set of prompts (query refresh)
    temperature: float = Field(1.0, gt=0)
    lr: float = Field(1e-6, ge=0)
    critic_lr: float = Field(1e-5, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # over the fraction of the budget spent
    warmup: float = Field(0.0, ge=0, lt=1)  # fraction of the budget with linearly rising learning rate
    micro_batch_tokens: int = Field(16384, ge=1)  # padded tokens of one forward/backward
    generation_tokens: int = Field(65536, ge=1)  # padded tokens generated at once by the transformers sampler
    lora: LoraSpec | None = None  # None: all weights are trained
    overrides: dict[str, Any] = Field(default_factory=dict)  # algorithm paths set wherever an arm has them


class Budget(Spec):
    """A run ends when the first of its limits is reached. `sampled_tokens` counts discarded responses too."""

    sampled_tokens: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _some_limit(self) -> Budget:
        if self.sampled_tokens is None and self.steps is None:
            raise ValueError("a budget needs sampled_tokens or steps")
        return self

    def fraction(self, sampled_tokens: int, steps: int) -> float:
        """Share of the budget that is spent, in [0, 1]; schedules run on it."""
        shares = [0.0]
        if self.sampled_tokens is not None:
            shares.append(sampled_tokens / self.sampled_tokens)
        if self.steps is not None:
            shares.append(steps / self.steps)
        return min(1.0, max(shares))


class EvalSpec(Spec):
    """Held-out evaluation: during training on `validation`, once at the start and once at the end on `test`."""

    points: int = Field(8, ge=0)  # evaluations during training, evenly spread over the budget
    prompts: int = Field(256, ge=1)
    samples: int = Field(1, ge=1)
    final_prompts: int = Field(8000, ge=1)
    final_samples: int = Field(1, ge=1)
    greedy: bool = False  # the likeliest token each time, instead of samples at the recipe's temperature

    @model_validator(mode="after")
    def _greedy_once(self) -> EvalSpec:
        if self.greedy and max(self.samples, self.final_samples) > 1:
            raise ValueError("greedy responses to a question are all the same: samples and final_samples must be 1")
        return self


class EngineSpec(Spec):
    """A rollout engine that is not the trainer's own model.

    With another `dtype` than the trainer's, the transformers sampler has its own copy of the weights in that precision,
    made anew after every update; int8 is for that sampler only.
    """

    dtype: RolloutDtype | None = None  # None: the trainer's
    kv_cache_gib: float = Field(1.0, gt=0)  # memory of the KV cache on CPU
    gpu_memory: float = Field(0.5, gt=0, lt=1)  # share of a GPU's memory for weights and KV cache
    server: str | None = None  # URL of a running engine server (`harness serve`); None: in this process
    transfer: Literal["file", "nccl"] = "file"  # how weights reach a server: through a file, or from GPU to GPU
    folder: str | None = None  # for files, readable on both machines; None: this machine's temporary folder


class UpdateSpec(Spec):
    """How an update is computed: every choice gives the same gradient but for rounding, and can be switched off."""

    share_prompts: bool = False  # siblings share one forward of their prompt
    skip_rows: bool = True  # rows that cannot contribute are left out
    sort_by_length: bool = True  # micro-batches of similar length
    chunk_logits: bool = True  # no tensor of tokens x vocabulary
    reuse_forward: bool = True  # the first update's forward gives its own old log-probs
    checkpoint_activations: bool = False  # recompute the decoder's activations in the backward pass
    compile: bool = False  # torch.compile of the decoder


class BackendSpec(Spec):
    """Choices that were made by measurement, once per machine and model; they can change numbers."""

    sampler: Literal["transformers", "vllm"] = "transformers"
    device: str = "cpu"  # "cpu" or "cuda"
    dtype: Dtype = "float32"
    threads: int = Field(1, ge=1)
    attention: str = "sdpa"  # an attention of transformers, or grouped_products
    experts: str | None = None  # how a mixture's experts compute (eager, grouped_mm, ...); None: the model's own way
    routers: int = Field(0, ge=0)  # layers that route to experts; 0: a dense model
    fp32_head: bool = False  # logits from hidden states and head weights in float32, in trainer and sampler
    engine: EngineSpec = EngineSpec()
    update: UpdateSpec = UpdateSpec()

    @property
    def rollout_dtype(self) -> RolloutDtype:
        """What samples computes in this precision."""
        return self.engine.dtype or self.dtype

    @field_validator("dtype", mode="before")
    @classmethod
    def _trainable(cls, value: Any) -> Any:
        if value == "int8":
            raise UsageError(
                "backend.dtype = int8",
                "training needs gradients, and numbers of eight bits have none worth the name",
                "backend.engine.dtype=int8, which rounds the weights that sample",
            )
        return value

    @model_validator(mode="after")
    def _possible(self) -> BackendSpec:
        if self.sampler == "vllm" and self.engine.dtype == "int8":
            raise UsageError(
                "backend.engine.dtype = int8 with --sampler vllm",
                "vLLM quantises a model when it loads it, and here its weights come anew after every update",
                "--sampler transformers, whose copy is rounded at every sync; or engine.dtype=bfloat16",
            )
        if self.sampler == "vllm" and self.fp32_head:
            raise UsageError(
                "backend.fp32_head = true with --sampler vllm",
                "vLLM computes the logits of generation in the model's precision, so only the trainer's would change",
                "--sampler transformers, or backend.engine.dtype=float32",
            )
        if self.fp32_head and self.dtype == "float32" and self.rollout_dtype in ("float32", "int8"):
            raise UsageError(
                "backend.fp32_head = true where everything computes in float32",
                "the head does so already, and the setting would change nothing",
                "backend.dtype or backend.engine.dtype bfloat16 or float16, or no fp32_head",
            )
        return self


class CheckpointSpec(Spec):
    """Which checkpoints a run keeps. None of it can change a number, so none of it is hashed."""

    newest: int = Field(2, ge=1)  # the last N, from which an interrupted run continues
    every: int = Field(10, ge=0)  # steps between the rungs of the ladder; 0: no ladder
    dense: int = Field(8, ge=1)  # rungs at that distance; beyond, half as many per doubling of the age
    ladder: Literal["while_running", "always"] = "while_running"  # always: also after an end without a collapse
    margin: int = Field(10, ge=0)  # steps that the last healthy checkpoint lies before the onset of a collapse
    best: bool = True  # the best on validation
    limit_gib: float = Field(64.0, gt=0)  # of one run's checkpoints; the ladder is thinned to fit


class PromptOrder(Spec):
    """Prompts of the train split in the order of another seed, or from a later one on: other questions."""

    seed: int = Field(ge=0)  # whose order
    first: int = Field(0, ge=0)  # prompts of that order that are passed over


class MonitorSpec(Spec):
    """What a collapse event does to a run; events are recorded under every policy."""

    on_collapse: Literal["record", "stop", "stop_on_fatal"] = "stop_on_fatal"  # stop: at a confirmed collapse too


class StartSpec(Spec):
    """Start from another run's checkpoint."""

    run: str  # path of a run folder
    checkpoint: str = "last"  # a step, or last, best, last_healthy, half, collapsed
    # optimizer: moments; critic: weights and moments; budget: all counters; adaptive: state of selection and penalties
    reset: tuple[Literal["optimizer", "critic", "budget", "adaptive"], ...] = ()
    prompts: PromptOrder | None = None  # None: the order of the run's own seed, continued


class ScheduleEntry(Spec):
    """From this fraction of the budget on, these algorithm or recipe paths have these values."""

    at: float = Field(ge=0, le=1)
    overrides: dict[str, Any]


class RunSpec(Spec):
    """One training run: an arm of a study at one seed pair."""

    schema_version: Literal[1] = 1
    numerics_version: int
    arm: str  # the name shown in reports
    algorithm: str  # registered preset
    overrides: dict[str, Any] = Field(default_factory=dict)
    bracket: Bracket = "outcome"
    roster: Roster = "matched"
    task: TaskSpec
    model: ModelSpec
    recipe: Recipe
    budget: Budget
    seed: int = Field(ge=0)  # seed pair: data order, sampling stream, cold start
    eval: EvalSpec = EvalSpec()
    backend: BackendSpec = BackendSpec()
    monitor: MonitorSpec = MonitorSpec()
    start: StartSpec | None = None
    schedule: tuple[ScheduleEntry, ...] = ()
    checkpoints: CheckpointSpec = CheckpointSpec()
    own_backend: dict[str, Any] = Field(default_factory=dict)  # dotted path of `backend` -> what the other arms have

    @property
    def hash(self) -> str:
        """Stable hash of everything that can change numbers."""
        return stable_hash(_hashed(self.model_dump(mode="json", exclude={"checkpoints", "own_backend"})))

    @property
    def run_id(self) -> str:
        """Readable, unique, and the same for the same spec."""
        arm = "".join(c if c.isalnum() else "-" for c in self.arm.lower()).strip("-")
        return f"{arm}-s{self.seed}-{self.hash[:8]}"


class ArmSpec(Spec):
    """One row of a comparison."""

    name: str
    algorithm: str
    overrides: dict[str, Any] = Field(default_factory=dict)  # on top of the roster's
    bracket: Bracket = "outcome"
    roster: Roster = "matched"
    recipe: dict[str, Any] = Field(default_factory=dict)  # recipe values of this arm alone; see OWN_RECIPE
    schedule: tuple[ScheduleEntry, ...] = ()  # of this arm alone, after the study's
    backend: dict[str, Any] = Field(default_factory=dict)  # dotted path -> value of this arm alone; see OWN_RECIPE

    @field_validator("backend", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        return dotted(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _same_settings_where_ranked(self) -> ArmSpec:
        own = self.recipe or self.schedule or self.backend
        if own and self.bracket != "control" and self.roster not in OWN_RECIPE:
            raise ValueError(
                f"arm {self.name} is ranked, so it has the study's recipe, schedule and backend; only controls, and "
                "arms of a stressed or tuned roster, have their own"
            )
        for path in self.backend:
            if path.split(".")[0] not in OWN_BACKEND:
                raise UsageError(
                    f"arm {self.name}: backend.{path}",
                    "an arm of its own there would run on another machine than the others, or not be a setting at all",
                    near(path, OWN_BACKEND),
                )
        return self


class SkippedArm(Spec):
    """An arm that was asked for but is not run, and why."""

    name: str
    reason: str  # e.g. "identical to GSPO"


class StudySpec(Spec):
    """A comparison: arms x seeds on one task, model and budget."""

    schema_version: Literal[1] = 1
    name: str
    preset: str | None = None
    task: TaskSpec
    model: ModelSpec
    recipe: Recipe
    budget: Budget
    eval: EvalSpec = EvalSpec()
    backend: BackendSpec = BackendSpec()
    arms: tuple[ArmSpec, ...]
    skipped: tuple[SkippedArm, ...] = ()
    seeds: tuple[int, ...]
    reference_arm: str = "GRPO"  # differences in the report are taken against it
    delta: float = Field(0.02, gt=0)  # smallest difference of interest, absolute score
    monitor: MonitorSpec = MonitorSpec()
    start: StartSpec | None = None  # every run starts from this checkpoint instead of the model's own weights
    schedule: tuple[ScheduleEntry, ...] = ()
    checkpoints: CheckpointSpec = CheckpointSpec()

    @property
    def hash(self) -> str:
        """Stable hash of the study without its name and without what is kept of it."""
        data = _hashed(self.model_dump(mode="json", exclude={"name", "checkpoints"}))
        return stable_hash({**data, "arms": [without(arm, backend={}) for arm in data["arms"]]})


def dotted(data: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested settings by dotted path: `{"engine": {"dtype": "int8"}}` is `{"engine.dtype": "int8"}`."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= dotted(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `dotted`."""
    found: dict[str, Any] = {}
    for path, value in flat.items():
        *heads, last = path.split(".")
        place = found
        for head in heads:
            place = place.setdefault(head, {})
        place[last] = value
    return found


def without(data: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """Without the keys that stand at their default: they came later, and older hashes do not hold them."""
    return {k: v for k, v in data.items() if k not in defaults or v != defaults[k]}


def _hashed(data: dict[str, Any]) -> dict[str, Any]:
    """What of a spec decides its hash."""
    data = _without_paths(data)
    return {**data, "backend": without(data["backend"], fp32_head=False, experts=None, routers=0)}


def _without_paths(data: dict[str, Any]) -> dict[str, Any]:
    """A data file counts by content and name, a run by its name, not by its folder; a server by being one."""
    engine = {k: v for k, v in data["backend"]["engine"].items() if k not in ("transfer", "folder")}
    if engine["server"] is not None:
        engine["server"] = "server"
    task, start = data["task"], data["start"]
    if task["data_sha256"] is not None:
        files = {key: task["params"][key].rsplit("/", 1)[-1] for key in DATA_FILES if key in task["params"]}
        task = {**task, "name": task["name"].rsplit("/", 1)[-1], "params": {**task["params"], **files}}
    if start is not None:
        start = {**start, "run": start["run"].rstrip("/").rsplit("/", 1)[-1]}
    return {**data, "backend": {**data["backend"], "engine": engine}, "task": task, "start": start}


def stable_hash(data: Any) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse(model: type[Any], data: Mapping[str, Any], where: str) -> Any:
    """Validates `data`; a problem becomes a UsageError that names the key and near matches."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(x) for x in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = _fields(model, first["loc"][:-1])
            raise UsageError(
                f"{where}: unknown key {key}", "no such setting", near(str(first["loc"][-1]), fields)
            ) from None
        why = str(first["msg"]).removeprefix("Value error, ")
        what = f"{where}: {key} = {first.get('input')!r}" if key else where  # a rule over several fields names them
        raise UsageError(what, why, "correct that value" if key else "correct these values") from None


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for step in path:
        field = model.model_fields.get(str(step))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return sorted(model.model_fields)
        model = annotation
    return sorted(model.model_fields)
