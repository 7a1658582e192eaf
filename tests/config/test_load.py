"""Finding and reading the file: one order, every fault at once, each where it stands, and never a key."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import msgspec
import pytest

from sidecar.config import Breaker, Config, ConfigError, Timeouts, examine, load, proxies
from tests.config.files import CANARY, ENV, OPENAI, OWN_KIND, config, messages, read, refused, written

FAULTY = """\
[server]
listen = ["127.0.0.1", "unix:run.sock"]
worker = 3
header_seconds = -1
[provider.openai]
kind = "openai"
[providers.openai]
base_url = "htp://x"
[providers.openai.limits]
requests_per_minute = "500"
[providers.lab]
kind = "openai-compatble"
[models.fast]
targets = ["opena/gpt-4o", "openai/"]
policy = "falover"
[log]
level = "debug"
"""


def test_every_fault_is_told_at_once_where_it_stands_with_the_nearest_name(tmp_path: Path) -> None:
    faults = refused(tmp_path, FAULTY)
    assert [(fault.line, fault.column, fault.message) for fault in faults] == [
        (2, 11, "'127.0.0.1' is not an address: host:port, unix:/path or fd:N"),
        (2, 24, "'unix:run.sock': unix: takes an absolute path"),
        (3, 1, 'unknown option "worker" in [server]; did you mean "workers"?'),
        (4, 1, "server.header_seconds must be a number over 0 and at most 86400, not -1"),
        (5, 2, 'unknown option "provider"; did you mean "providers"?'),
        (8, 1, "providers.openai.base_url: not of the form http(s)://host[:port][/path]"),
        (
            10,
            1,
            "providers.openai.limits.requests_per_minute must be a whole number from 1 to 1000000000, not a string",
        ),
        (
            12,
            1,
            f'no provider is built in by the name "openai-compatble"{OWN_KIND}; did you mean "openai-compatible"?',
        ),
        (14, 12, 'the target "opena/gpt-4o" names no configured provider; did you mean "openai"?'),
        (14, 28, 'the target "openai/" is not of the form provider/model'),
        (
            15,
            1,
            'models.fast.policy must be "failover" or "hedge" or "least-latency" or "weighted", not "falover"'
            '; did you mean "failover"?',
        ),
        (17, 1, 'log.level must be "info" or "off", not "debug"'),
    ]


def test_a_fault_reads_as_compilers_write_them(tmp_path: Path) -> None:
    fault = refused(tmp_path, FAULTY)[1]
    assert str(fault) == (
        f"{tmp_path}/sidecar.toml:2:24: 'unix:run.sock': unix: takes an absolute path\n"
        '    listen = ["127.0.0.1", "unix:run.sock"]\n'
        "                           ^"
    )


def test_the_error_is_all_faults(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(tmp_path, FAULTY)
    assert str(refusal.value) == "\n".join(map(str, refusal.value.faults))


def test_of_a_thousand_faults_a_hundred_are_told(tmp_path: Path) -> None:
    faults = refused(tmp_path, OPENAI + "[server]\n" + "".join(f"x{number} = 1\n" for number in range(1000)))
    assert len(faults) == 101
    assert faults[-1].message == "and more"


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        (b"", 1, 1, "no provider is configured: add [providers.openai], or another"),
        (b"[providers]\n", 1, 2, "no provider is configured: add [providers.openai], or another"),
        (b'[providers.openai]\napi_key = "sk\xff"\n', 2, 14, "is not UTF-8"),
        (b'a = "x\n', 1, 7, "illegal character '\\n'"),
        (b"a = \n", 1, 5, "invalid value"),
        (b"a = 1\na = 2\n", 2, 6, "cannot overwrite a value"),
        (b"[server", 1, 8, "expected ']' at the end of a table declaration"),
        (b"a = 1" + b"0" * 5000, 0, 0, "a number has too many digits"),
        (b"a = " + b"[" * 20_000, 0, 0, "arrays or tables are nested too deep"),
        (b"#" * 1024 * 1024 + b"#", 0, 0, "is larger than 1048576 bytes"),
    ],
)
def test_what_is_no_configuration_at_all(tmp_path: Path, text: bytes, line: int, column: int, message: str) -> None:
    (fault,) = refused(tmp_path, text)
    assert (fault.line, fault.column, fault.message) == (line, column, message)


def test_a_mark_of_byte_order_and_windows_line_ends_are_taken(tmp_path: Path) -> None:
    text = b"\xef\xbb\xbf" + OPENAI.replace("\n", "\r\n").encode()
    assert list(read(tmp_path, text).config.providers) == ["openai"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.toml", "cannot be read: no such file or directory"),
        (".", "cannot be read: is a directory"),
        ("loop", "cannot be read: too many levels of symbolic links"),
        ("file/sidecar.toml", "cannot be read: not a directory"),
        ("nul\0byte", "cannot be read: its name cannot be one"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    written(tmp_path / "file", "")
    with pytest.raises(ConfigError) as refusal:
        examine(tmp_path / name, env={})
    assert messages(refusal.value.faults) == [message]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    assert messages(refused(tmp_path, OPENAI, mode=0o000)) == ["cannot be read: permission denied"]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as end:
        end.write(OPENAI.encode())
    found = examine(f"/dev/fd/{reader}", env=ENV)
    os.close(reader)
    assert list(found.config.providers) == ["openai"]
    assert found.files == {}  # there is nothing to watch


def test_a_fifo_waits_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    writing = threading.Thread(target=(tmp_path / "fifo").write_text, args=(OPENAI,))
    writing.start()
    assert list(load(tmp_path / "fifo", env=ENV).providers) == ["openai"]
    writing.join()


# -- where it is looked for


def test_the_named_file_then_the_variable_then_the_folder_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {**ENV, "SIDECAR_CONFIG": "variable.toml"}
    assert examine(env=ENV).file is None
    written(tmp_path / "sidecar.toml", OPENAI)
    assert examine(env=ENV).file == "sidecar.toml"
    written(tmp_path / "variable.toml", OPENAI)
    assert examine(env=env).file == "variable.toml"
    written(tmp_path / "named.toml", OPENAI)
    assert examine("named.toml", env=env).file == "named.toml"


@pytest.mark.parametrize("name", ["sidecar.toml", "elsewhere.toml"])
def test_a_file_that_was_meant_and_is_not_there_is_no_zero_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sidecar.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=f"^{name}: cannot be read: no such file or directory$"):
        load(env={**ENV, "SIDECAR_CONFIG": "" if name == "sidecar.toml" else name})


def test_zero_config_takes_each_provider_whose_key_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = examine(env={"OPENAI_API_KEY": "sk-1", "XAI_API_KEY": "xai-1", "GROQ_API_KEY": "  ", "HF_TOKEN": ""})
    assert list(found.config.providers) == ["openai", "xai"]
    key = found.config.providers["xai"].api_key
    assert key is not None
    assert key.secret is not None
    assert key.secret.matches("xai-1")
    assert found.sources["providers.xai.api_key"] == "env:XAI_API_KEY"


def test_zero_config_without_any_key_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        load(env={})
    (fault,) = refusal.value.faults
    assert str(fault).startswith(
        "no sidecar.toml here, no $SIDECAR_CONFIG, and no provider's key in the environment; set OPENAI_API_KEY, "
    )
    assert "`sidecar demo`" in str(fault)


def test_zero_config_refuses_what_is_no_key_without_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        load(env={"OPENAI_API_KEY": f"{CANARY} and more"})
    assert "the environment variable OPENAI_API_KEY holds spaces" in str(refusal.value)
    assert CANARY not in str(refusal.value)


def test_the_proxy_variables_are_read_but_not_the_one_that_a_request_can_set() -> None:
    env = {"HTTPS_PROXY": "http://a:1", "no_proxy": "b", "HTTP_PROXY": "http://cgi:1", "all_proxy": ""}
    assert proxies(env) == {"HTTPS_PROXY": "http://a:1", "no_proxy": "b"}


# -- what it becomes


def test_what_the_file_leaves_out_is_as_the_structs_say(tmp_path: Path) -> None:
    assert msgspec.structs.replace(config(tmp_path, OPENAI), providers={}) == Config()


def test_timeouts_and_pool_are_defaults_of_every_provider_key_by_key(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        "[timeouts]\nconnect_seconds = 2\nidle_seconds = 9\n[pool]\nmax_connections = 7\n"
        "[providers.openai]\n[providers.openai.timeouts]\nidle_seconds = 3\n[providers.xai]\n",
    )
    assert found.providers["openai"].timeouts == Timeouts(connect_seconds=2, idle_seconds=3)
    assert found.providers["xai"].timeouts == Timeouts(connect_seconds=2, idle_seconds=9)
    assert found.providers["xai"].pool.max_connections == 7


def test_the_breaker_is_a_default_of_every_provider_key_by_key(tmp_path: Path) -> None:
    text = "[breaker]\nconsecutive_failures = 2\nopen_seconds = 9\n"
    text += "[providers.openai]\nbreaker.open_seconds = 3\n[providers.xai]\n"
    found = config(tmp_path, text).providers
    assert found["openai"].breaker == Breaker(consecutive_failures=2, open_seconds=3, max_open_seconds=60)
    assert found["xai"].breaker == Breaker(consecutive_failures=2, open_seconds=9, max_open_seconds=60)


def test_a_fault_of_a_shared_table_is_told_once_and_there(tmp_path: Path) -> None:
    faults = refused(tmp_path, "[timeouts]\nidle_seconds = 0\n[providers.openai]\n[providers.xai]\n")
    assert [(fault.line, fault.message) for fault in faults] == [
        (2, "timeouts.idle_seconds must be a number over 0 and at most 86400, not 0")
    ]


def test_a_string_alone_is_a_list_of_one_where_there_may_be_several(tmp_path: Path) -> None:
    found = config(tmp_path, OPENAI + '[server]\nlisten = "127.0.0.1:1"\n[models]\nfast.targets = "openai/m"\n')
    assert found.server.listen == ("127.0.0.1:1",)
    assert found.models["fast"].targets == ("openai/m",)


def test_names_of_files_are_relative_to_the_folder_of_the_file_that_has_them(tmp_path: Path) -> None:
    assert config(tmp_path, OPENAI + '[log]\nfile = "access.log"\n').log.file == f"{tmp_path}/access.log"
    assert config(tmp_path, OPENAI + '[log]\nfile = "/dev/null"\n').log.file == "/dev/null"
    assert config(tmp_path, OPENAI + '[log]\nfile = "-"\n').log.file == "-"


@pytest.mark.parametrize("mode", ["440", "0", "0o1000", '"0o660"', "0o000", "432"])
def test_a_mode_is_written_in_octal(tmp_path: Path, mode: str) -> None:
    faults = refused(tmp_path, f"{OPENAI}[server]\nsocket_mode = {mode}\n")
    assert messages(faults) == ["server.socket_mode must be a mode in octal, as 0o660"]


def test_sources_say_the_line_of_each_value(tmp_path: Path) -> None:
    found = read(tmp_path, "[timeouts]\nidle_seconds = 9\n" + OPENAI)
    file = f"{tmp_path}/sidecar.toml"
    assert found.sources["providers.openai.api_key"] == f"{file}:4"
    assert found.sources["providers.openai.timeouts.idle_seconds"] == f"{file}:2"
    assert "timeouts.connect_seconds" not in found.sources


# -- and never a key


@pytest.mark.parametrize(
    "text",
    [
        f'[providers.openai]\napi_key = "{CANARY} x"\n',
        f'[providers.openai]\napi_key = "env:{CANARY}"\n',
        f'[providers.openai]\napi_key = "$ {CANARY}"\n',
        f'[providers.openai]\napi_key = ["{CANARY}"]\n',
        f'[providers.openai]\napi_keys = "{CANARY}"\n',
        f'[providers.openai]\napi_keys = ["{CANARY}", 3]\n',
        f'[providers.openai]\napi_keys = ["{CANARY}", "caller"]\n',
        f'[providers.openai]\napi_keys = ["{CANARY} x"]\n',
        f'[providers.openai]\napi_keys = [["{CANARY}"]]\n',
        f'{OPENAI}[models]\nx.targets = [{{ to = "openai/m", params.key = "{CANARY}", odd = 1 }}]\n',
        f'{OPENAI}[models]\nx.targets = [{{ to = "openai/m", params = {{ stream = "{CANARY}" }} }}]\n',
        f'{OPENAI}[models]\nx.targets = [{{ to = "openai/m", headers = "{CANARY}" }}]\n',
        f'[providers.openai]\napikey = "{CANARY}"\n',
        f'[providers.openai]\napi_key = "{CANARY}\n',
        f"[providers.openai]\napi_key = {CANARY}\n",
        f'[providers.openai]\napi_key = """\n{CANARY}\n"""\n',
        f'[providers.openai]\napi_key = "a"\napi_key = "{CANARY}"\n',
        f'[providers]\nopenai = "{CANARY}"\n',
        f'[providers.openai]\nbase_url = "https://u:{CANARY}@host/v1"\n',
        f'[providers.openai]\nbase_url = "https://u:{CANARY}/x@host/v1"\n',
        f'[providers.openai]\nbase_url = "htp://host/v1?key={CANARY}"\n',
        f'[providers.openai]\nbase_url = "https://host:x/v1?{CANARY}"\n',
        f'[providers.openai]\nproxy = "u:{CANARY}@host:1"\n',
        f'[providers.openai]\nproxy = "{CANARY}"\nbase_url = ["{CANARY}"]\n',
        f'[providers.openai]\nbase_url = "{CANARY}"\n',
        f'[providers.openai]\nproxy = "http://u:{CANARY} h:1"\n',
        f'[server]\nproxy.models = ["{CANARY}"]\n',
        f'[providers]\nopenai = {{ tls_verify = 3, model.targets = ["{CANARY}"] }}\n',
        f'[providers.openai]\nproxy = "http://u:{CANARY}@host:x"\n',
        f'[providers.openai]\nheaders = {{ "x-key" = "{CANARY}\\n" }}\n',
        f'[providers.openai]\nheaders = {{ "x y" = "{CANARY}" }}\n',
        f'[providers.openai]\nheaders.Host = "{CANARY}"\n',
        f'[providers.openai]\ntls_ca = """-----BEGIN CERTIFICATE-----\n{CANARY}"""\n',
        f'{OPENAI}[server]\ntls_cert = "c"\ntls_key = """-----BEGIN PRIVATE KEY-----\n{CANARY}"""\n',
        f'{OPENAI}[callers.web]\nkey = "{CANARY}"\nmodels = 3\nkeys = ["{CANARY}"] # {CANARY}\n',
        f'{OPENAI}[callers.web]\nkey = "sha256:{CANARY}"\n',
        f'{OPENAI}[callers]\na.key = "{CANARY}"\nb.key = "{CANARY}"\n',
        f'{OPENAI}[callers]\na = {{ key = "{CANARY}", x = 1 }}\n',
    ],
)
def test_no_fault_repeats_a_key(tmp_path: Path, text: str) -> None:
    faults = refused(tmp_path, text)
    assert CANARY not in "\n".join(map(str, faults))
