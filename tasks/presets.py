"""Published data sets: where their columns are, and how their answers are compared. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BOXED = "\n\nReason step by step, and put your final answer within \\boxed{{}}."  # {{}}: a brace in a format string


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPreset:
    """A data set on the hub, and the parameters of a data task that read it."""

    dataset: str  # id on the Hugging Face hub
    params: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    split: str = "train"
    test_split: str | None = None  # None: the one split is divided by content


PRESETS: Mapping[str, DataPreset] = {
    "gsm8k": DataPreset(
        dataset="openai/gsm8k",
        config="main",
        test_split="test",
        params={"prompt": "{question}" + BOXED, "answer_split": "####", "match": "math"},
    ),
    "math": DataPreset(
        dataset="DigitalLearningGmbH/MATH-lighteval",
        test_split="test",
        params={
            "prompt": "{problem}" + BOXED,
            "answer_field": "solution",
            "answer_part": "boxed",
            "match": "math",
        },
    ),
    "math-500": DataPreset(
        dataset="HuggingFaceH4/MATH-500",
        split="test",
        params={"prompt": "{problem}" + BOXED, "answer_field": "answer", "match": "math"},
    ),
    "aime24": DataPreset(
        dataset="HuggingFaceH4/aime_2024",
        params={"prompt": "{problem}" + BOXED, "answer_field": "answer", "match": "math"},
    ),
    "dapo-math": DataPreset(  # its prompts carry their own instruction; equal rows count once
        dataset="BytedTsinghua-SIA/DAPO-Math-17k",
        params={"prompt": "{prompt.0.content}", "answer_field": "reward_model.ground_truth", "match": "math"},
    ),
    "svamp": DataPreset(
        dataset="ChilleD/SVAMP",
        test_split="test",
        params={"prompt": "{Body} {Question}" + BOXED, "answer_field": "Answer", "match": "math"},
    ),
}


def preset_of_dataset(dataset: str) -> str | None:
    """The preset of a dataset id."""
    return next((name for name, preset in PRESETS.items() if preset.dataset == dataset), None)
