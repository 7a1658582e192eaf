"""Keys by reference: each form, and who may read or write the files they are in (D27)."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sidecar.config import Caller, ConfigError, Key, Provider, examine, stamp
from tests.config.files import CANARY, ENV, OPENAI, config, messages, read, refused, written


def provider_key(folder: Path, reference: str, env: dict[str, str] | None = None) -> Key:
    found = config(folder, f'[providers.openai]\napi_key = "{reference}"\n', env or {})
    key = found.providers["openai"].api_key
    assert key is not None
    return key


def secret(key: Key) -> str:
    assert key.secret is not None
    return key.secret.reveal()


# -- forms


def test_of_a_variable(tmp_path: Path) -> None:
    key = provider_key(tmp_path, "env:MY_KEY", {"MY_KEY": f" {CANARY}\n"})
    assert (key.source, secret(key)) == ("env:MY_KEY", CANARY)


def test_of_a_file_beside_the_configuration(tmp_path: Path) -> None:
    written(tmp_path / "key", f"\n{CANARY}\n")
    key = provider_key(tmp_path, "file:key")
    assert (key.source, secret(key)) == ("file:key", CANARY)
    assert secret(provider_key(tmp_path, f"file:{tmp_path}/key")) == CANARY


def test_of_whoever_asks(tmp_path: Path) -> None:
    key = provider_key(tmp_path, "caller")
    assert (key.source, key.secret, key.missing) == ("caller", None, None)


def test_inline_in_a_private_file(tmp_path: Path) -> None:
    key = provider_key(tmp_path, CANARY)
    assert (key.source, secret(key)) == ("inline", CANARY)


def test_by_default_of_the_kinds_variable(tmp_path: Path) -> None:
    found = config(tmp_path, '[providers.mine]\nkind = "groq"\n', {"GROQ_API_KEY": CANARY})
    key = found.providers["mine"].api_key
    assert key is not None
    assert secret(key) == CANARY


@pytest.mark.parametrize("kind", ["ollama", "vllm", "llamacpp"])
def test_some_need_none(tmp_path: Path, kind: str) -> None:
    assert config(tmp_path, f"[providers.{kind}]\n", {}).providers[kind].api_key is None


def test_a_variable_that_is_not_set_is_warned_of_and_told_when_the_provider_is_asked(tmp_path: Path) -> None:
    found = read(tmp_path, OPENAI, {"OPENAI_API_KEY": " "})
    key = found.config.providers["openai"].api_key
    assert key is not None
    assert (key.secret, key.missing) == (None, "the environment variable OPENAI_API_KEY is not set")
    assert messages(found.warnings) == [
        "providers.openai.api_key: the environment variable OPENAI_API_KEY is not set",
    ]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "a key is empty; say where it is: env:NAME or file:/path"),
        ("env:", "what stands behind env: is not the name of an environment variable"),
        ("env:A-B", "what stands behind env: is not the name of an environment variable"),
        ("env:SPACED", "the environment variable SPACED holds spaces or characters beyond ASCII, so it is no key"),
        ("$OPENAI_API_KEY", "a variable is named as env:NAME"),
        ("two words", "a key has no spaces and no characters beyond ASCII"),
        ("schl\u00fcssel", "a key has no spaces and no characters beyond ASCII"),
        ("sha256:" + "0" * 64, "sha256: is for callers' keys; a provider's must be known: env:NAME or file:/path"),
        ("file:absent", "the key file {}/absent cannot be read: no such file or directory"),
        ("file:.", "the key file {} cannot be read: is a directory"),
        ("file:empty", "the key file {}/empty is empty"),
        ("file:words", "the key file {}/words holds something that is no key"),
        ("file:bytes", "the key file {}/bytes holds something that is no key"),
        ("file:big", "the key file {}/big is larger than a key can be, which is 65536 bytes"),
        ("file:fifo", "the key file {}/fifo is not a file"),
    ],
)
def test_what_is_no_key_of_a_provider(tmp_path: Path, reference: str, message: str) -> None:
    written(tmp_path / "empty", " \n")
    written(tmp_path / "words", "two words")
    written(tmp_path / "bytes", b"\xff\xfe")
    written(tmp_path / "big", b"a" * 65537)
    os.mkfifo(tmp_path / "fifo", 0o600)
    text = f'[providers.openai]\napi_key = "{reference}"\n'
    assert messages(refused(tmp_path, text, {"SPACED": "a b"})) == [
        "providers.openai.api_key: " + message.format(tmp_path)
    ]


# -- callers


@pytest.mark.parametrize("reference", ["env:WEB_KEY", "file:key", CANARY, "sha256:{}", "SHA"])
def test_of_a_callers_key_only_the_digest_is_kept(tmp_path: Path, reference: str) -> None:
    digest = hashlib.sha256(CANARY.encode())
    written(tmp_path / "key", CANARY)
    reference = f"sha256:{digest.hexdigest().upper()}" if reference == "SHA" else reference.format(digest.hexdigest())
    key = (
        config(tmp_path, f'{OPENAI}[callers.web]\nkey = "{reference}"\n', {**ENV, "WEB_KEY": CANARY}).callers["web"].key
    )
    assert key.digest == digest.digest()
    assert key.secret is None
    assert CANARY not in repr(key)
    assert digest.hexdigest() not in repr(key).lower()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("env:WEB_KEY", "the environment variable WEB_KEY is not set: this caller could never be recognised"),
        ("sha256:abc", "sha256: takes the 64 hexadecimal digits of the key's SHA-256"),
        ("sha256:" + "g" * 64, "sha256: takes the 64 hexadecimal digits of the key's SHA-256"),
        (
            "caller",
            '"caller" forwards the key of whoever asks, so it is for providers; say env:NAME, file:/path or sha256:HEX',
        ),
    ],
)
def test_what_is_no_key_of_a_caller(tmp_path: Path, reference: str, message: str) -> None:
    faults = refused(tmp_path, f'{OPENAI}[callers.web]\nkey = "{reference}"\n')
    assert messages(faults) == [f"callers.web.key: {message}"]


def test_two_callers_with_one_key_are_refused_however_it_is_spelt(tmp_path: Path) -> None:
    digest = hashlib.sha256(CANARY.encode()).hexdigest()
    faults = refused(tmp_path, f'{OPENAI}[callers]\na.key = "{CANARY}"\nb.key = "sha256:{digest}"\n')
    assert messages(faults) == ["the callers a and b have the same key"]


# -- permissions (D27)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o664])
def test_a_configuration_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    (fault,) = refused(tmp_path, OPENAI, mode=mode)
    file = f"{tmp_path}/sidecar.toml"
    assert str(fault) == f"{file}: {file} has mode {mode:04o}, so others may change it: chmod go-w {file}"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o644, 0o755])
def test_one_that_others_may_read_is_taken_when_no_secret_stands_in_it(tmp_path: Path, mode: int) -> None:
    assert read(tmp_path, OPENAI, mode=mode).warnings == []


SECRETS = [
    f'[providers.openai]\napi_key = "{CANARY}"\n',
    f'{OPENAI}headers.x-api-key = "{CANARY}"\n',
    f'{OPENAI}proxy = "http://user:{CANARY}@127.0.0.1:3128"\n',
    f'{OPENAI}base_url = "https://host/v1?key={CANARY}"\n',
    f'{OPENAI}[callers.web]\nkey = "{CANARY}"\n',
]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_in_a_file_that_others_may_read_is_refused(tmp_path: Path, text: str, mode: int) -> None:
    (fault,) = refused(tmp_path, text, mode=mode)
    file = f"{tmp_path}/sidecar.toml"
    assert f"{file} has mode {mode:04o}, so others may read what is in it: chmod 600 {file}" in fault.message
    assert "\n" not in fault.message
    assert CANARY not in str(fault)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o711])
@pytest.mark.parametrize("text", SECRETS)
def test_and_taken_in_one_that_they_may_not(tmp_path: Path, text: str, mode: int) -> None:
    assert read(tmp_path, text, mode=mode).warnings == []


def test_what_azure_asks_for_in_a_url_is_no_secret(tmp_path: Path) -> None:
    text = f'{OPENAI}base_url = "https://host/openai?api-version=2024-10-21"\n'
    assert read(tmp_path, text, mode=0o644).warnings == []


FILED = '[providers.openai]\napi_key = "file:key"\n'


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_key_file_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    key = written(tmp_path / "key", CANARY, mode)
    (fault,) = refused(tmp_path, FILED)
    assert fault.message == (
        f"providers.openai.api_key: the key file {key} has mode {mode:04o}, so others may change it: chmod go-w {key}"
    )


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_file_that_others_may_read_is_warned_of(tmp_path: Path, mode: int) -> None:
    key = written(tmp_path / "key", CANARY, mode)
    assert messages(read(tmp_path, FILED).warnings) == [
        f"providers.openai.api_key: the key file {key} has mode {mode:04o}, so others may read it: chmod 600 {key}"
    ]


def test_a_folder_in_which_others_may_replace_the_file_is_warned_of(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    assert messages(read(folder, OPENAI).warnings) == [
        f"the folder {folder} has mode 0777, so others may replace {folder}/sidecar.toml: chmod go-w {folder}"
    ]
    folder.chmod(0o1777)  # the sticky bit keeps what is not theirs
    assert read(folder, OPENAI).warnings == []


# -- as Kubernetes mounts them


def mounted(folder: Path, version: str, text: str, key: str) -> None:
    """A volume of a ConfigMap or Secret: files are links through ..data, which is swapped in one step."""
    real = folder / f"..{version}"
    real.mkdir()
    written(real / "sidecar.toml", text, 0o644)
    written(real / "key", key, 0o644)
    (folder / "..new").symlink_to(real.name)
    (folder / "..new").rename(folder / "..data")
    for name in ("sidecar.toml", "key"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def test_links_through_a_swapped_folder_are_followed_and_their_swap_is_seen(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    mounted(tmp_path, "1", FILED, "sk-one")
    first = examine(tmp_path / "sidecar.toml", env={})
    assert messages(first.warnings) == [  # 0644 is all that a volume gives unless it is told
        f"providers.openai.api_key: the key file {tmp_path}/key has mode 0644, so others may read it:"
        f" chmod 600 {tmp_path}/key"
    ]
    assert {file: stamp(file) for file in first.files} == first.files
    assert list(first.files) == [f"{tmp_path}/sidecar.toml", f"{tmp_path}/key"]
    mounted(tmp_path, "2", FILED, "sk-two")
    assert all(stamp(file) != was for file, was in first.files.items())
    key = examine(tmp_path / "sidecar.toml", env={}).config.providers["openai"].api_key
    assert key is not None
    assert secret(key) == "sk-two"


def test_a_refusal_tells_which_files_to_watch_for_its_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, FILED)
    assert list(refusal.value.files) == [f"{tmp_path}/sidecar.toml", f"{tmp_path}/key"]
    assert refusal.value.files[f"{tmp_path}/key"] is None


@pytest.mark.parametrize("change", ["write", "replace", "chmod", "remove"])
def test_a_stamp_is_another_after_any_change(tmp_path: Path, change: str) -> None:
    file = written(tmp_path / "file", "a")
    before = stamp(str(file))
    match change:
        case "write":
            file.write_text("ab")
        case "replace":
            written(tmp_path / "other", "a").rename(file)
        case "chmod":
            file.chmod(0o644)
        case _:
            file.unlink()
    assert stamp(str(file)) != before


def test_no_repr_shows_a_key() -> None:
    key = Key(source="inline", digest=b"d" * 32)
    table = Provider(api_key=key, base_url=f"https://h?k={CANARY}", headers={"a": CANARY}, proxy=f"http://u:{CANARY}@h")
    assert CANARY not in repr((table, Caller(key=key)))


def several(folder: Path, keys: str, more: str = "") -> tuple[Key, ...]:
    env = {"A": "k-a", "B": "k-b", "C": "k-a"}
    return read(folder, f"[providers.openai]\napi_keys = {keys}\n{more}", env).config.providers["openai"].api_keys


def test_several_keys_of_a_provider(tmp_path: Path) -> None:
    written(tmp_path / "key", "k-file\n")
    found = several(tmp_path, '["env:A", "file:key", "inline-key"]')
    assert [key.secret.reveal() for key in found if key.secret is not None] == ["k-a", "k-file", "inline-key"]
    assert [key.source for key in found] == ["env:A", "file:key", "inline"]


def test_several_keys_instead_of_the_kinds_variable(tmp_path: Path) -> None:
    loaded = read(tmp_path, '[providers.openai]\napi_keys = ["env:A", "env:B"]\n', {"A": "k-a", "OPENAI_API_KEY": "o"})
    provider = loaded.config.providers["openai"]
    assert provider.api_key is None
    assert [key.missing for key in provider.api_keys] == [None, "the environment variable B is not set"]
    assert messages(loaded.warnings) == ["providers.openai.api_keys.1: the environment variable B is not set"]
    assert loaded.warnings[0].column == 22


@pytest.mark.parametrize(
    ("keys", "column", "message"),
    [
        ("[]", 1, "providers.openai.api_keys: needs a key, as env:NAME or file:/path"),
        ('"env:A"', 1, "providers.openai.api_keys must be an array, not a string"),
        (
            '["env:A", 1]',
            22,
            "providers.openai.api_keys.1 must be a string that says where the key is: env:NAME or file:/path",
        ),
        (
            '["env:A", "caller"]',
            22,
            'providers.openai.api_keys: "caller" is for api_key: it cannot take turns with others',
        ),
        (
            '["env:A", "$B"]',
            22,
            "providers.openai.api_keys.1: a variable is named as env:NAME",
        ),
    ],
)
def test_what_are_no_keys(tmp_path: Path, keys: str, column: int, message: str) -> None:
    (fault,) = refused(tmp_path, f"[providers.openai]\napi_keys = {keys}\n", {"A": "k-a", "B": "k-b", "C": "k-a"})
    assert (fault.line, fault.column, fault.message) == (2, column, message)


@pytest.mark.parametrize("keys", ['["env:A", "env:A"]', '["env:A", "env:C"]', '["env:X", "env:X"]'])
def test_a_key_that_is_there_twice_is_warned_of(tmp_path: Path, keys: str) -> None:
    """However it is spelt: it would be asked again as soon as it is limited."""
    loaded = read(tmp_path, f"[providers.openai]\napi_keys = {keys}\n", {"A": "k-a", "C": "k-a"})
    assert loaded.warnings[-1].message == "providers.openai.api_keys: this key stands there already"
    assert (loaded.warnings[-1].line, loaded.warnings[-1].column) == (2, 22)


def test_one_key_and_several_are_refused(tmp_path: Path) -> None:
    (fault,) = refused(tmp_path, OPENAI + 'api_keys = ["env:OPENAI_API_KEY"]\n')
    assert (fault.line, fault.message) == (3, "[providers.openai] has both api_key and api_keys: take one of them")


def test_several_keys_in_a_file_that_others_may_read_are_refused(tmp_path: Path) -> None:
    (fault,) = refused(tmp_path, '[providers.openai]\napi_keys = ["env:OPENAI_API_KEY", "inline"]\n', mode=0o644)
    assert fault.message.startswith("providers.openai.api_keys.1: a key stands in the file, and ")
