"""`sidecar serve` as a process: it starts, says what to paste, reloads, and ends."""

from __future__ import annotations

import hashlib
import shlex
import signal
import socket
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.commands.process import Process, children_seconds, ran, started
from tests.config.files import CANARY, written

START_SECONDS = 0.5
LOCAL = """\
[server]
listen = "127.0.0.1:0"
lame_duck_seconds = 0
[providers.lab]
kind = "openai-compatible"
base_url = "http://127.0.0.1:1/v1"
"""


def up(process: Process) -> str:
    """Where it listens, once its banner is out."""
    address = process.line("sidecar listens on ").split()[3].rstrip(",")
    process.line("curl ")
    return f"http://{address}"


def models(url: str) -> list[str]:
    return [each["id"] for each in httpx.get(f"{url}/v1/models", trust_env=False).json()["data"]]


def event(process: Process, name: str) -> dict[str, object]:
    """The next line of the log about something."""
    found: dict[str, object] = msgspec.json.decode(process.line(f'"event":"{name}"'))
    return found


# -- starting


def test_a_store_that_is_not_there_is_told_of_at_the_start(tmp_path: Path) -> None:
    written(tmp_path / "sidecar.toml", f'{LOCAL}[store]\nurl = "redis://:{CANARY}@127.0.0.1:9"\n')
    with started(folder=tmp_path) as process:
        up(process)
        told = event(process, "store")
        assert told["up"] is False
        assert "refused" in str(told["why"])
        assert process.end() == 0
    assert CANARY not in "".join(process.told)


def test_what_it_gives_to_paste_works(tmp_path: Path) -> None:
    with started("simulate", "--port", "0", folder=tmp_path) as provider:
        base_url = provider.line("simulated provider at ").split()[-1]
        written(
            tmp_path / "sidecar.toml",
            LOCAL.replace("http://127.0.0.1:1/v1", base_url) + '[models]\nfast.targets = "lab/sim-large"\n',
        )
        with started(folder=tmp_path) as process:
            address = process.line("sidecar listens on ").split()[3]
            assert process.line("export ") == f"export OPENAI_BASE_URL=http://{address}/v1\n"
            words = shlex.split(process.line("curl "))
            url, flag, header, data, body = words[1:]
            assert (flag, data) == ("-H", "-d")
            headers = [tuple(header.split(": ")), ("user-agent", "curl")]
            answer = httpx.post(url, content=body, headers=headers, trust_env=False)  # type: ignore[arg-type]
            assert answer.status_code == 200
            assert answer.json()["choices"]
            exchange = event(process, "exchange")
            assert (exchange["status"], exchange["provider"], exchange["asked_model"]) == (200, "lab", "fast")
            assert process.end() == 0
        assert provider.end() == 0


def test_its_first_answer_comes_in_time(tmp_path: Path) -> None:
    """By the processor's time, and the end included, since others may be using the machine."""
    written(tmp_path / "sidecar.toml", LOCAL)
    before = children_seconds()
    with started(folder=tmp_path, covered=False) as process:
        assert httpx.get(f"{up(process)}/livez", trust_env=False).status_code == 200
        assert process.end() == 0
    assert children_seconds() - before < START_SECONDS


def test_with_a_key_in_the_environment_it_needs_no_file(tmp_path: Path) -> None:
    with started("serve", "--listen", "127.0.0.1:0", folder=tmp_path, env={"OPENAI_API_KEY": CANARY}) as process:
        assert models(up(process)) == []
        assert process.end(signal.SIGINT) == 0
    assert CANARY not in "".join(process.told)


def test_without_one_it_says_what_to_do(tmp_path: Path) -> None:
    done = ran("serve", folder=tmp_path)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith("no sidecar.toml here, no $SIDECAR_CONFIG, and no provider's key in the environment; set ")
    assert last == "1 fault; nothing was started"


def test_several_workers_tell_it_once_and_share_the_port(tmp_path: Path) -> None:
    written(tmp_path / "sidecar.toml", LOCAL)
    with started("--workers", "2", folder=tmp_path) as process:
        url = up(process)
        for _ in range(4):
            assert httpx.get(f"{url}/livez", trust_env=False).status_code == 200
        assert process.end() == 0
    assert "".join(process.told).count("listens on") == 1


@pytest.mark.parametrize("mode", [0o660, 0o600])
def test_a_unix_socket_has_its_mode_and_is_gone_at_the_end(tmp_path: Path, mode: int) -> None:
    written(tmp_path / "sidecar.toml", LOCAL.replace("lame", f"socket_mode = 0o{mode:o}\nlame"))
    path = tmp_path / "s"
    with started("--listen", f"unix:{path}", folder=tmp_path) as process:
        process.line(f"sidecar listens on unix:{path}")
        process.line("curl ")
        assert path.stat().st_mode & 0o777 == mode
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/livez").status_code == 200
        assert process.end() == 0
    assert not path.exists()


def test_an_address_that_cannot_be_had_is_a_failure_and_leaves_nothing(tmp_path: Path) -> None:
    written(tmp_path / "sidecar.toml", LOCAL)
    written(tmp_path / "file", "")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, told in (
            (["--listen", f"127.0.0.1:{port}"], f"127.0.0.1:{port}: address already in use"),
            (["--listen", f"127.0.0.1:{port}", "--workers", "2"], f"127.0.0.1:{port}: address already in use"),
            (["--listen", f"unix:{tmp_path}/no/s"], f"unix:{tmp_path}/no/s: no such file or directory"),
            (["--listen", f"unix:{tmp_path}/file/s"], f"unix:{tmp_path}/file/s: not a directory"),
            (["--listen", f"unix:{tmp_path}/file"], f"unix:{tmp_path}/file: a file that is no socket is there"),
            (["--listen", "fd:99"], "fd:99: bad file descriptor"),
        ):
            done = ran("serve", "--listen", f"unix:{tmp_path}/first", *words, folder=tmp_path)
            assert (done.returncode, done.stdout, done.stderr) == (1, "", f"sidecar: cannot listen on {told}\n")
            assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "nonsense"])
def test_an_address_that_must_not_be_listened_on_is_a_fault(tmp_path: Path, address: str) -> None:
    written(tmp_path / "sidecar.toml", LOCAL)
    done = ran("serve", "--listen", address, folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert address in done.stderr


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        (LOCAL, 0o666, "sidecar.toml has mode 0666, so others may change it: chmod go-w "),
        (LOCAL + f'api_key = "{CANARY}"\n', 0o644, "has mode 0644, so others may read what is in it: chmod 600 "),
    ],
)
def test_modes_that_let_others_in_are_faults(tmp_path: Path, text: str, mode: int, told: str) -> None:
    written(tmp_path / "sidecar.toml", text, mode)
    done = ran("serve", folder=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[0]
    assert CANARY not in done.stderr


# -- reloading


def with_model(name: str) -> str:
    return f'{LOCAL}[models]\n{name}.targets = "lab/m"\n'


def test_a_signal_reloads_and_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    file = written(tmp_path / "sidecar.toml", with_model("one"))
    with started(folder=tmp_path) as process:
        url = up(process)
        assert "one" in models(url)
        written(file, with_model("two").replace("127.0.0.1:0", "127.0.0.1:9"))
        process.child.send_signal(signal.SIGHUP)
        told = event(process, "reload")
        assert (told["ok"], told["needs_restart"]) == (True, ["server.listen"])
        assert "two" in models(url)
        written(file, with_model("three").replace("kind", f'apikey = "{CANARY}"\nkind'))
        process.child.send_signal(signal.SIGHUP)
        told = event(process, "reload")
        assert told["ok"] is False
        assert 'sidecar.toml:5:1: unknown option "apikey" in [providers.lab]; did you mean "api_key"?' in str(
            told["why"]
        )
        assert "two" in models(url)
        assert process.end() == 0
    assert CANARY not in "".join(process.told)


def test_a_stream_that_is_under_way_goes_on_through_a_reload(tmp_path: Path) -> None:
    with started("simulate", "--port", "0", "--rate", "40", "--tokens", "40", folder=tmp_path) as provider:
        base_url = provider.line("simulated provider at ").split()[-1]
        file = written(tmp_path / "sidecar.toml", with_model("one").replace("http://127.0.0.1:1/v1", base_url))
        with started(folder=tmp_path) as process:
            url = up(process)
            ask = {"model": "lab/sim-large", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=ask, trust_env=False) as answer:
                lines = answer.iter_lines()
                assert next(lines).startswith("data: {")
                written(file, LOCAL.replace("lab", "other"))
                process.child.send_signal(signal.SIGHUP)
                assert event(process, "reload")["ok"] is True
                assert httpx.post(f"{url}/v1/chat/completions", json=ask, trust_env=False).status_code == 404
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert sum('"content":"' in line for line in rest) >= 39
            assert process.end() == 0


def test_a_change_of_the_file_or_of_a_key_reloads_by_itself(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    for version in ("1", "2"):  # as Kubernetes mounts a Secret
        (volume / f"..{version}").mkdir()
        written(volume / f"..{version}/sidecar.toml", with_model(f"m{version}") + '[callers.web]\nkey = "file:key"\n')
        written(volume / f"..{version}/key", f"key-{version}")
    (volume / "..data").symlink_to("..1")
    for name in ("sidecar.toml", "key"):
        (volume / name).symlink_to(f"..data/{name}")
    with started("--config", f"{volume}/sidecar.toml", folder=tmp_path) as process:
        url = up(process)

        def status(key: str) -> int:
            return httpx.get(f"{url}/v1/models", headers={"x-api-key": key}, trust_env=False).status_code

        assert (status("key-1"), status("key-2")) == (200, 401)
        (volume / "..new").symlink_to("..2")
        (volume / "..new").rename(volume / "..data")
        assert event(process, "reload")["ok"] is True
        assert (status("key-1"), status("key-2")) == (401, 200)
        written(volume / "..2/key", "key-3")  # the key alone
        assert event(process, "reload")["ok"] is True
        assert (status("key-2"), status("key-3")) == (401, 200)
        assert process.end() == 0


def test_callers_cannot_be_taken_away_from_a_listener_that_others_reach(tmp_path: Path) -> None:
    callers = f'[callers.web]\nkey = "sha256:{hashlib.sha256(b"k").hexdigest()}"\n'
    file = written(tmp_path / "sidecar.toml", LOCAL + callers)
    with started("--listen", "0.0.0.0:0", folder=tmp_path) as process:
        url = up(process).replace("0.0.0.0", "127.0.0.1")
        written(file, LOCAL)
        process.child.send_signal(signal.SIGHUP)
        told = event(process, "reload")
        assert told["ok"] is False
        assert "can be reached from other machines" in str(told["why"])
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401
        assert process.end() == 0


def test_with_the_log_off_a_refused_reload_is_told_all_the_same(tmp_path: Path) -> None:
    file = written(tmp_path / "sidecar.toml", LOCAL + '[log]\nlevel = "off"\n')
    with started(folder=tmp_path) as process:
        up(process)
        written(file, "nonsense")
        process.child.send_signal(signal.SIGHUP)
        process.line("sidecar: the configuration was not reloaded:")
        assert "sidecar.toml:1:9: expected '='" in process.line("sidecar.toml")
        assert process.end() == 0


# -- the log, and the end


def test_the_log_goes_to_a_file_and_survives_its_being_moved(tmp_path: Path) -> None:
    written(tmp_path / "sidecar.toml", LOCAL + '[log]\nfile = "access.log"\n')
    log, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    with started(folder=tmp_path) as process:
        url = up(process)
        ask = {"model": "lab/m", "messages": [{"role": "user", "content": CANARY}]}
        for _ in range(2):
            assert httpx.post(f"{url}/v1/chat/completions", json=ask, trust_env=False).status_code == 502
            for _ in range(100):
                if log.exists() and log.stat().st_size:
                    break
                time.sleep(0.02)
            if not moved.exists():
                log.rename(moved)
        assert process.end() == 0
    for file in (log, moved):
        (line,) = file.read_bytes().splitlines()
        assert msgspec.json.decode(line)["status"] == 502
        assert CANARY.encode() not in line
        assert file.stat().st_mode & 0o027 == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_without_a_word(tmp_path: Path, number: signal.Signals) -> None:
    written(tmp_path / "sidecar.toml", LOCAL)
    with started(folder=tmp_path) as process:
        up(process)
        before = len(process.told)
        assert process.end(number) == 0
        assert "".join(process.told[before:]) == ""


@pytest.mark.parametrize("seconds", [0.06, 0.1, 0.15, 0.2])
def test_interrupted_at_any_time_it_leaves_no_traceback(tmp_path: Path, seconds: float) -> None:
    written(tmp_path / "sidecar.toml", LOCAL)
    with started(folder=tmp_path, covered=False) as process:
        time.sleep(seconds)
        code = process.end(signal.SIGINT)
    told = "".join(process.told)
    assert code in (0, -signal.SIGINT) or "sidecar" not in told  # Python has its own words, before there is any of ours
    assert "sidecar/cli.py" not in told
    assert "sidecar/commands" not in told


# -- metrics


def series(url: str) -> set[tuple[str, ...]]:
    """Every series there is, as Prometheus reads them."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_that_strangers_make_up_are_one_series(tmp_path: Path) -> None:
    """D31, from outside: in bodies, in paths, of methods and of headers."""
    written(tmp_path / "sidecar.toml", LOCAL)
    with started(folder=tmp_path) as process:
        url = up(process)
        with httpx.Client(base_url=url, trust_env=False) as client:

            def ask(number: int) -> None:
                name = f"made-up-{number}"
                body = {"model": name, "messages": [{"role": "user", "content": "hello"}]}
                assert client.post("/v1/chat/completions", json=body).status_code == 404
                assert client.post(f"/openai/deployments/{name}/chat/completions", json=body).status_code == 404
                assert client.post(f"/v1/{name}", json=body, headers={"x-sidecar-tag": name}).status_code == 404
                assert client.get(f"/v1/models/{name}").status_code == 404
                assert client.request(f"MADE{number}", "/v1/chat/completions").status_code == 501

            ask(0)
            before = series(url)
            for number in range(1, 100):
                ask(number)
        after = series(url)
        assert after == before
        assert not any("made-up" in label for each in after for label in each)
        assert process.end() == 0


def test_nor_are_those_that_a_provider_refuses(tmp_path: Path) -> None:
    """D31 again: the provider is asked, and knows no such model."""
    with started("simulate", "--port", "0", "--model", "sim-large", folder=tmp_path) as provider:
        base_url = provider.line("simulated provider at ").split()[-1]
        written(tmp_path / "sidecar.toml", LOCAL.replace("http://127.0.0.1:1/v1", base_url))
        with started(folder=tmp_path) as process:
            url = up(process)
            with httpx.Client(base_url=url, trust_env=False) as client:
                for number in range(20):
                    body = {"model": f"lab/made-up-{number}", "messages": [{"role": "user", "content": "hello"}]}
                    assert client.post("/v1/chat/completions", json=body).status_code == 404
            models = {label for each in series(url) for label in each if label.startswith("model=")}
            assert process.end() == 0
    assert len(models) <= 1
