"""What the names of Claude models say."""

from __future__ import annotations

import pytest

from sidecar.dialects import messages_models as models


@pytest.mark.parametrize(
    ("model", "generation"),
    [
        ("claude-opus-4-7", (4, 7)),
        ("claude-haiku-4-5-20251001", (4, 5)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-opus-4-1@20250805", (4, 1)),
        ("anthropic.claude-sonnet-4-5-20250929-v1:0", (4, 5)),
        ("anthropic/claude-opus-4.6", (4, 6)),
        ("claude-sonnet-5", (5, 0)),
        ("claude-opus-5-5", (5, 5)),
        ("Claude-Fable-5", (5, 0)),
        ("claude-mythos-preview", (5, 0)),
        ("claude-3-5-sonnet-20241022", (3, 5)),
        ("claude-3-opus-20240229", (3, 0)),
        ("claude-3.7-sonnet", (3, 7)),
        ("claude-2.1", (2, 1)),
        ("claude-instant", None),
        ("deepseek-chat", None),
        ("", None),
    ],
)
def test_generation(model: str, generation: tuple[int, int] | None) -> None:
    assert models.generation(model) == generation


@pytest.mark.parametrize(
    ("model", "sampling", "adaptive", "form", "most"),
    [
        ("claude-3-5-haiku-latest", True, False, False, 8192),
        ("claude-3-opus-20240229", True, False, False, 4096),
        ("claude-sonnet-4-20250514", True, False, False, 32_000),
        ("claude-haiku-4-5", True, False, True, 32_000),
        ("claude-sonnet-4-6", True, True, True, 32_000),
        ("claude-opus-4-7", False, True, True, 32_000),
        ("claude-fable-5", False, True, True, 32_000),
        ("qwen3", True, False, True, 4096),
    ],
)
def test_rules(model: str, sampling: bool, adaptive: bool, form: bool, most: int) -> None:
    assert models.takes_sampling(model) is sampling
    assert models.adaptive(model) is adaptive
    assert models.takes_format(model) is form
    assert models.max_tokens(model) == most


def test_finer_rules() -> None:
    assert models.always_thinks("claude-mythos-5")
    assert not models.always_thinks("claude-opus-5")
    assert models.takes_effort_xhigh("claude-opus-4-7")
    assert not models.takes_effort_xhigh("claude-opus-4-6")
    assert models.one_of_temperature_and_top_p("claude-sonnet-4-5")
    assert not models.one_of_temperature_and_top_p("claude-3-7-sonnet")
