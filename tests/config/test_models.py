"""What [models] may say: each fault where it stands, in words that mend it; and what is taken as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.config import Model, Target
from tests.config.files import config, messages, read, refused

HEAD = """\
[providers.openai]
api_key = "env:OPENAI_API_KEY"
tags = ["us"]
[providers.lab]
kind = "openai-compatible"
base_url = "http://127.0.0.1:1/v1"
tags = ["eu", "own"]
"""
LINES = HEAD.count("\n")


def model(folder: Path, text: str, name: str = "fast") -> Model:
    return config(folder, f'{HEAD}[models."{name}"]\n{text}\n').models[name]


def faults(folder: Path, text: str, name: str = "fast") -> list[tuple[int, int, str]]:
    """Line (that of the table is 0), column and words of each fault."""
    found = refused(folder, f'{HEAD}[models."{name}"]\n{text}\n')
    return [(fault.line - LINES - 1, fault.column, fault.message) for fault in found]


def warnings(folder: Path, text: str) -> list[str]:
    return messages(read(folder, f"{HEAD}[models.fast]\n{text}\n").warnings)


def test_what_a_name_has_by_default(tmp_path: Path) -> None:
    found = model(tmp_path, 'targets = "lab/m"')
    assert found == Model(
        targets=("lab/m",),
        policy="failover",
        fallback_on=("error", "timeout", "rate_limit"),
        affinity_header=None,
        tags=(),
        hedge_after_seconds=None,
        hedge_budget_percent=5.0,
        coalesce=False,
        continuation=False,
        keepalive_comment_seconds=None,
        commit_bytes=65536,
        commit_seconds=30.0,
    )


def test_targets_as_text_and_as_tables(tmp_path: Path) -> None:
    text = """\
targets = [
  "lab/a",
  { to = "lab/b" },
  { to = "openai/c", weight = 3, order = 1, tags = ["cheap"], params = { top_p = 0.5, stop = ["x", "y"], a.b = 1 } },
]"""
    expected = Target(
        to="openai/c",
        weight=3,
        order=1,
        tags=("cheap",),
        params={"top_p": 0.5, "stop": ["x", "y"], "a": {"b": 1}},
    )
    assert model(tmp_path, text).targets == ("lab/a", Target(to="lab/b", weight=1, order=0), expected)
    tables = '[[models.fast.targets]]\nto = "lab/a"\n[[models.fast.targets]]\nto = "lab/b"\nparams.top_k = 1'
    assert model(tmp_path, tables).targets == (Target(to="lab/a"), Target(to="lab/b", params={"top_k": 1}))


@pytest.mark.parametrize(
    ("target", "column", "message"),
    [
        ("3", 12, "models.fast.targets must be a string or a table, not 3"),
        ("{}", 12, '[models.fast.targets.0] needs the option "to"'),
        (
            '{ to = "lab/m", wieght = 2 }',
            28,
            'unknown option "wieght" in [models.fast.targets.0]; did you mean "weight"?',
        ),
        ("{ to = 1 }", 14, "models.fast.targets.0.to must be a string, not 1"),
        (
            '{ to = "lab/m", weight = 0 }',
            28,
            "models.fast.targets.0.weight must be a whole number from 1 to 1000000, not 0",
        ),
        (
            '{ to = "lab/m", weight = 1.5 }',
            28,
            "models.fast.targets.0.weight must be a whole number from 1 to 1000000, not 1.5",
        ),
        (
            '{ to = "lab/m", order = 1001 }',
            28,
            "models.fast.targets.0.order must be a whole number from 0 to 1000, not 1001",
        ),
        (
            '{ to = "lab/m", order = -1 }',
            28,
            "models.fast.targets.0.order must be a whole number from 0 to 1000, not -1",
        ),
        ('{ to = "lab/m", tags = "eu" }', 28, "models.fast.targets.0.tags must be an array, not a string"),
        ('{ to = "lab/m", params = 1 }', 28, "models.fast.targets.0.params must be a table, not 1"),
        ('{ to = "lba/m" }', 12, 'the target "lba/m" names no configured provider; did you mean "lab"?'),
        ('{ to = "m" }', 12, 'the target "m" is not of the form provider/model'),
        ('{ to = "lab/é" }', 12, "the target 'lab/é' has spaces or characters beyond ASCII, or no or too many"),
        (
            '{ to = "lab/m", tags = ["e u"] }',
            36,
            "the name 'e u' has spaces or characters beyond ASCII, or no or too many",
        ),
    ],
)
def test_a_target_at_fault(tmp_path: Path, target: str, column: int, message: str) -> None:
    found = faults(tmp_path, f"targets = [{target}]")
    assert [(line, words) for line, _, words in found[:1]] == [(1, message)]
    assert found[0][1] == column


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ('model = "x"', 'model: "model" is not for params: the target and the client say it'),
        ("stream = true", 'stream: "stream" is not for params: the target and the client say it'),
        ("seed = nan", "seed: JSON has no nan and no inf"),
        ("seed = -inf", "seed: JSON has no nan and no inf"),
        ("a.b = [[1, inf]]", "a: JSON has no nan and no inf"),
        ("when = 1979-05-27", "when: JSON has no dates and times: write it as a string"),
        ("when = 07:32:00", "when: JSON has no dates and times: write it as a string"),
        ("when = [1979-05-27T07:32:00Z]", "when: JSON has no dates and times: write it as a string"),
        ("seed = 18446744073709551616", "seed: a whole number of so many digits: write it as a string"),
    ],
)
def test_what_is_no_parameter(tmp_path: Path, param: str, message: str) -> None:
    ((line, _, found),) = faults(tmp_path, f'targets = [{{ to = "lab/m", params = {{ {param} }} }}]')
    assert (line, found) == (1, f"models.fast.targets.0.params.{message}")


def test_parameters_up_to_their_bounds_are_taken(tmp_path: Path) -> None:
    params = 'a = -9223372036854775808, b = 18446744073709551615, c = 1e300, d = true, e = "", f = [], g = {}'
    (target,) = model(tmp_path, f'targets = [{{ to = "lab/m", params = {{ {params} }} }}]').targets
    assert isinstance(target, Target)
    assert list(target.params.values()) == [-(2**63), 2**64 - 1, 1e300, True, "", [], {}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'policy = "wieghted"',
            'policy must be "failover" or "hedge" or "least-latency" or "weighted", not "wieghted"'
            '; did you mean "weighted"?',
        ),
        ('fallback_on = "any"', "fallback_on must be an array, not a string"),
        (
            'fallback_on = ["eror"]',
            'fallback_on must be "any" or "content_policy" or "context_window" or "error" or "rate_limit" or "timeout"'
            ', not "eror"; did you mean "error"?',
        ),
        ('affinity_header = "x session"', "affinity_header: 'x session' is not a header's name"),
        ('affinity_header = ""', "affinity_header: '' is not a header's name"),
        ("affinity_header = 1", "affinity_header must be a string, not 1"),
        ('tags = "eu"', "tags must be an array, not a string"),
        ("tags = [1]", "tags must be a string, not 1"),
        ("coalesce = 1", "coalesce must be true or false, not 1"),
        ('continuation = "yes"', "continuation must be true or false, not a string"),
    ],
)
def test_a_setting_at_fault(tmp_path: Path, line: str, message: str) -> None:
    ((number, _, found),) = faults(tmp_path, f'targets = ["lab/a", "lab/b"]\n{line}')
    assert (number, found) == (2, f"models.fast.{message}")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("fallbackon = []", "fallback_on"),
        ("afinity_header = 1", "affinity_header"),
        ("hedge_after = 1", "hedge_after_seconds"),
        ("hedge_budget = 1", "hedge_budget_percent"),
        ("coalesced = true", "coalesce"),
        ("continue = true", "continuation"),
        ("keepalive_seconds = 1", "keepalive_comment_seconds"),
        ("commit_byte = 1", "commit_bytes"),
        ("commit_second = 1", "commit_seconds"),
    ],
)
def test_the_nearest_setting_is_told(tmp_path: Path, wrong: str, right: str) -> None:
    ((_, _, found),) = faults(tmp_path, f'targets = "lab/a"\n{wrong}')
    assert found == f'unknown option "{wrong.split()[0]}" in [models.fast]; did you mean "{right}"?'


# -- wildcards


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("gpt-*", ("openai/*", "lab/fixed", "lab/ft:*-x")),
        ("openai/*", ("openai/*",)),
        ("*", ("lab/*",)),
        ("*-latest", ("lab/*",)),
    ],
)
def test_wildcards_are_taken(tmp_path: Path, name: str, targets: tuple[str, ...]) -> None:
    assert model(tmp_path, f"targets = {list(targets)}", name).targets == targets


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        (
            "fast",
            "openai/*",
            'the target "openai/*" stands for many models, and the name "fast" for one: name a model, or put a * into'
            ' the name, as [models."openai/*"]',
        ),
        ("g-*", "openai/*-*", 'the target "openai/*-*" has more than one *'),
        ("g-*-*", "openai/*", 'the name "g-*-*" has more than one *'),
        ("g-*", "*/m", 'the target "*/m" names no configured provider'),
        ("g-*", "*", 'the target "*" is not of the form provider/model'),
    ],
)
def test_a_wildcard_at_fault(tmp_path: Path, name: str, target: str, message: str) -> None:
    assert [found for _, _, found in faults(tmp_path, f'targets = ["{target}"]', name)] == [message]


# -- tags


def test_tags_that_leave_a_target_are_taken(tmp_path: Path) -> None:
    text = 'targets = ["openai/a", { to = "openai/b", tags = ["fast"] }, "lab/c"]\n'
    for tags in ([], ["us"], ["fast", "us"], ["own", "eu"]):
        assert model(tmp_path, f"{text}tags = {tags}").tags == tuple(tags)


@pytest.mark.parametrize(
    ("tags", "column", "message"),
    [
        ('["owm"]', 9, 'no target of [models.fast] has the tag "owm", nor its provider; did you mean "own"?'),
        ('["us", "zzz"]', 15, 'no target of [models.fast] has the tag "zzz", nor its provider'),
        ('["us", "eu"]', 1, "no target of [models.fast] has all of these tags, with its provider's"),
    ],
)
def test_tags_that_leave_no_target(tmp_path: Path, tags: str, column: int, message: str) -> None:
    assert faults(tmp_path, f'targets = ["openai/a", "lab/c"]\ntags = {tags}') == [(2, column, message)]


def test_what_follows_from_another_fault_is_not_told(tmp_path: Path) -> None:
    ((_, _, message),) = faults(tmp_path, 'targets = ["lba/a"]\ntags = ["eu"]')
    assert message.startswith('the target "lba/a" names no configured provider')


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ('["eu", "own", "cheap"]', None),
        ('["owm"]', '"owm" is a tag of no provider and of no target; did you mean "own"?'),
        ('["zzzz"]', '"zzzz" is a tag of no provider and of no target'),
    ],
)
def test_tags_of_callers(tmp_path: Path, tags: str, message: str | None) -> None:
    text = f"""{HEAD}\
[models.fast]
targets = [{{ to = "lab/m", tags = ["cheap"] }}]
[callers.web]
key = "env:OPENAI_API_KEY"
tags = {tags}
"""
    if message is None:
        assert config(tmp_path, text).callers["web"].tags == ("eu", "own", "cheap")
    else:
        (fault,) = refused(tmp_path, text)
        assert (fault.line, fault.column, fault.message) == (LINES + 5, 9, message)


# -- what does nothing is warned of


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("hedge_after_seconds = 1", 'models.fast.hedge_after_seconds does nothing without policy = "hedge"'),
        ("hedge_budget_percent = 1", 'models.fast.hedge_budget_percent does nothing without policy = "hedge"'),
        ('policy = "hedge"\nhedge_after_seconds = 1\nhedge_budget_percent = 1', None),
        ('policy = "weighted"', None),
        ('affinity_header = "x-session"', None),
    ],
)
def test_settings_that_do_nothing(tmp_path: Path, text: str, warned: str | None) -> None:
    assert warnings(tmp_path, f'targets = "lab/m"\n{text}') == ([warned] if warned else [])


def test_weights_that_do_nothing(tmp_path: Path) -> None:
    text = 'targets = ["lab/a", { to = "lab/b", weight = 2 }]\n'
    said = 'models.fast.targets.1.weight does nothing without policy = "weighted" or an affinity_header'
    assert warnings(tmp_path, text) == [said]
    assert warnings(tmp_path, f'{text}policy = "least-latency"') == [said]
    assert warnings(tmp_path, f'{text}policy = "weighted"') == []
    assert warnings(tmp_path, f'{text}affinity_header = "x-session"') == []
