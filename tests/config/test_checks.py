"""What no type can say: names, URLs, headers, addresses, certificates, the log."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from sidecar.config import Breaker, Retry
from tests.config.files import CANARY, OPENAI, OWN_KIND, config, messages, read, refused, written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[providers.opneai]",
            f'no provider is built in by the name "opneai"{OWN_KIND}; did you mean "openai"?',
        ),
        (
            "[providers.lab]",
            f'no provider is built in by the name "lab"{OWN_KIND}; did you mean "alibaba"?',
        ),
        (
            '[providers.lab]\nkind = "openai-compatible"',
            '[providers.lab] needs the option "base_url": where it is served, with its /v1',
        ),
        (
            '[providers."a b"]\nkind = "openai"\napi_key = "caller"',
            "the provider's name 'a b' may have letters, digits, dots, dashes and underscores only",
        ),
        (OPENAI + '[models.fast]\npolicy = "failover"', '[models.fast] needs the option "targets"'),
        (OPENAI + "[models.fast]\ntargets = []", "[models.fast] needs a target, as provider/model"),
        (
            OPENAI + '[models]\na.targets = "b"\nb.targets = "openai/m"',
            'the target "b" is itself a name of [models]; name a provider/model',
        ),
        (OPENAI + '[models]\na.targets = "m"', 'the target "m" is not of the form provider/model'),
        (
            OPENAI + '[models]\na.targets = "openai/a b"',
            "the target 'openai/a b' has spaces or characters beyond ASCII, or no or too many",
        ),
        (
            OPENAI + '[models]\n"a b".targets = "openai/m"',
            "the name 'a b' has spaces or characters beyond ASCII, or no or too many",
        ),
        (OPENAI + "[callers.web]\nmodels = []", '[callers.web] needs the option "key"'),
        (OPENAI + 'headers.Host = "x"', "the header 'Host' is written by the sidecar itself"),
        (OPENAI + 'headers.Content-Length = "1"', "the header 'Content-Length' is written by the sidecar itself"),
        (OPENAI + 'headers."a b" = "x"', "'a b' is not a header, or its value is not plain text"),
        (OPENAI + 'headers.a = "x\\r\\ny: z"', "'a' is not a header, or its value is not plain text"),
        (
            OPENAI + '[server]\nallow_origins = ["https://a.example", "https://b.example/"]',
            "server.allow_origins: 'https://b.example/' is not an origin as browsers send it: https://host[:port]",
        ),
        (
            OPENAI + '[server]\nallow_origins = ["*"]',
            "server.allow_origins: '*' is not an origin as browsers send it: https://host[:port]",
        ),
        (
            OPENAI + '[callers.web]\nkey = "k"\nmodels = ["openai/*", "opneai/m"]',
            '"opneai/m" names no configured provider and no name of [models]; did you mean "openai"?',
        ),
        (
            OPENAI + '[server]\nlisten = ["127.0.0.1:0", "127.0.0.1:0", "unix:/a", "unix:/a"]',
            "'unix:/a' is listened on already",
        ),
        (OPENAI + "[server]\nlisten = []", "server.listen: there is nothing to listen on"),
        (
            OPENAI + '[server]\ntls_key = "absent"',
            "server.tls_key: {}/absent cannot be read: no such file or directory",
        ),
        (OPENAI + '[log]\nfile = "."', "log.file: {} is a directory"),
        (
            OPENAI + '[log]\nfile = "no/log"',
            "log.file: {0}/no/log cannot be made: {0}/no is not there, or may not be written",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert message.format(tmp_path) in messages(refused(tmp_path, text + "\n"))


def test_a_provider_that_is_faulty_is_not_an_unknown_one_too(tmp_path: Path) -> None:
    faults = refused(tmp_path, '[providers.lab]\nkind = 3\n[models.fast]\ntargets = "lab/m"\n')
    assert messages(faults) == ["providers.lab.kind must be a string, not 3"]


def test_a_name_for_a_caller_that_is_nearly_an_alias_is_warned_of(tmp_path: Path) -> None:
    models = '[models]\nfast.targets = "openai/m"\n'
    caller = '[callers.web]\nkey = "k"\nmodels = ["fsat", "fast", "gpt-4o", "f*", "*/m", "openai/m"]\n'
    assert messages(read(tmp_path, OPENAI + models + caller).warnings) == [
        '"fsat" is no name of [models]; did you mean "fast"?'
    ]


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (["gpt-*", "gpt-4o", "gpt-4*", "gp*", "own/a", "own/*", "own/a*", "team/one", "team/*", "team/o?e"], []),
        (["team/two"], ['"team/two" names no configured provider and no name of [models]; did you mean "team/one"?']),
        (["owm/a"], ['"owm/a" names no configured provider and no name of [models]; did you mean "own/*"?']),
        (["own"], ['"own" is no name of [models]; did you mean "own/*"?']),
    ],
)
def test_names_for_a_caller_beside_names_with_a_star(tmp_path: Path, patterns: list[str], told: list[str]) -> None:
    models = '[models]\n"gpt-*".targets = "openai/*"\n"own/*".targets = "openai/*"\n"team/one".targets = "openai/m"\n'
    text = f'{OPENAI}{models}[callers.web]\nkey = "k"\nmodels = {patterns}\n'
    if "names no" in "".join(told):
        assert messages(refused(tmp_path, text)) == told
    else:
        assert messages(read(tmp_path, text).warnings) == told


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "https://",
        "host/v1",
        "https://host:0/v1",
        "https://host:99999/v1",
        "https://user@host/v1",
        "https://host/v1#part",
        "https://ho st/v1",
        "https://höst/v1",
        "unix:relative.sock",
        "unix:/a.sock:v1",
    ],
)
def test_what_is_no_base_url(tmp_path: Path, url: str) -> None:
    faults = refused(tmp_path, f'{OPENAI}base_url = "{url}"\n')
    assert [fault.line for fault in faults] == [3]


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://[::1]/v1", "unix:/run/a.sock", "unix:/a:/v1"])
def test_what_is_one(tmp_path: Path, url: str) -> None:
    assert config(tmp_path, f'{OPENAI}base_url = "{url}"\n').providers["openai"].base_url == url


# -- who can reach it


@pytest.mark.parametrize("address", ["0.0.0.0:4000", ":4000", "[::]:4000", "192.168.1.5:4000", "[2001:db8::1]:1"])
def test_a_listener_that_others_reach_needs_callers(tmp_path: Path, address: str) -> None:
    server = f'[server]\nlisten = "{address}"\n'
    (fault,) = refused(tmp_path, OPENAI + server)
    assert fault.message == (
        f"{address} can be reached from other machines, and no [callers] are configured: anybody could spend your keys"
    )
    assert (fault.line, fault.column) == (4, 1)
    assert messages(refused(tmp_path, OPENAI + server + "[callers]\n")) == [fault.message]
    assert config(tmp_path, OPENAI + server + '[callers.web]\nkey = "env:OPENAI_API_KEY"\n').callers


@pytest.mark.parametrize(
    "address", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/a.sock", "fd:9"]
)
def test_one_that_only_this_machine_reaches_does_not(tmp_path: Path, address: str) -> None:
    assert config(tmp_path, f'{OPENAI}[server]\nlisten = "{address}"\n').server.listen == (address,)


def test_a_socket_for_everybody_needs_callers(tmp_path: Path) -> None:
    (fault,) = refused(tmp_path, OPENAI + '[server]\nlisten = "unix:/run/a.sock"\nsocket_mode = 0o666\n')
    assert fault.message == (
        "unix:/run/a.sock: with socket_mode 0666 anybody may use it; add [callers], or take o-w away"
    )


# -- certificates


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    authority = trustme.CA()
    for name in ("ours", "other"):
        issued = authority.issue_cert("localhost")
        written(tmp_path / f"{name}.key", issued.private_key_pem.bytes())
        written(tmp_path / f"{name}.pem", issued.cert_chain_pems[0].bytes(), 0o644)
    written(tmp_path / "ca.pem", authority.cert_pem.bytes(), 0o644)
    written(tmp_path / "text", "hello")
    return tmp_path


def tls(certificate: str, key: str) -> str:
    return f'{OPENAI}[server]\ntls_cert = "{certificate}"\ntls_key = "{key}"\n'


def test_a_certificate_with_its_key_is_taken(certificates: Path) -> None:
    found = read(certificates, tls("ours.pem", "ours.key"))
    assert (found.config.server.tls_cert, found.warnings) == (f"{certificates}/ours.pem", [])


@pytest.mark.parametrize(
    ("certificate", "key", "message"),
    [
        ("ours.pem", "other.key", "server.tls_key: the key is not the certificate's"),
        ("text", "ours.key", "server.tls_key: the key or the certificate is not PEM, or it has a password"),
        ("ours.pem", "text", "server.tls_key: the key or the certificate is not PEM, or it has a password"),
    ],
)
def test_one_that_cannot_be_used_is_not(certificates: Path, certificate: str, key: str, message: str) -> None:
    assert messages(refused(certificates, tls(certificate, key))) == [message]


def test_one_goes_with_the_other(certificates: Path) -> None:
    text = f'{OPENAI}[server]\ntls_cert = "ours.pem"\n'
    assert messages(refused(certificates, text)) == ["tls_cert and tls_key go together"]


def test_a_key_that_others_may_read_is_warned_of_or_write_refused(certificates: Path) -> None:
    key = certificates / "ours.key"
    key.chmod(0o644)
    assert messages(read(certificates, tls("ours.pem", "ours.key")).warnings) == [
        f"server.tls_key: {key} has mode 0644, so others may read it: chmod 600 {key}"
    ]
    key.chmod(0o666)
    assert messages(refused(certificates, tls("ours.pem", "ours.key"))) == [
        f"server.tls_key: {key} has mode 0666, so others may change it: chmod go-w {key}"
    ]


def test_a_pasted_key_is_not_taken_for_a_path_nor_repeated(tmp_path: Path) -> None:
    faults = refused(tmp_path, tls("c.pem", f"-----BEGIN PRIVATE KEY-----\\n{CANARY}\\n"))
    assert "server.tls_key takes the path of a PEM file, not what is in it" in messages(faults)
    assert CANARY not in "\n".join(map(str, faults))


def test_authorities_of_a_provider_are_certificates(certificates: Path) -> None:
    assert config(certificates, OPENAI + 'tls_ca = "ca.pem"\n').providers["openai"].tls_ca == f"{certificates}/ca.pem"
    assert messages(refused(certificates, OPENAI + 'tls_ca = "text"\n')) == [
        f"providers.openai.tls_ca: {certificates}/text holds no certificate in PEM form"
    ]


def test_tls_that_is_not_verified_is_warned_of(tmp_path: Path) -> None:
    assert messages(read(tmp_path, OPENAI + "tls_verify = false\n").warnings) == [
        "providers.openai: TLS is not verified: whoever is in between reads its key"
    ]


def test_checking_makes_no_log(tmp_path: Path) -> None:
    config(tmp_path, OPENAI + '[log]\nfile = "access.log"\n')
    assert not (tmp_path / "access.log").exists()


# -- bad days


@pytest.mark.parametrize(
    ("table", "less", "more"),
    [
        ("retry", "base_seconds", "cap_seconds"),
        ("breaker", "open_seconds", "max_open_seconds"),
        ("providers.openai.breaker", "open_seconds", "max_open_seconds"),
    ],
)
def test_a_first_wait_over_the_longest_is_refused(tmp_path: Path, table: str, less: str, more: str) -> None:
    text = f"{OPENAI}[{table}]\n{less} = 90\n"
    config(tmp_path, text)  # the default of the longest gives way
    config(tmp_path, f"{text}{more} = 90\n")
    (fault,) = refused(tmp_path, f"{text}{more} = 80.5\n")
    assert (fault.line, fault.column) == (4, 1)
    assert fault.message == f"{table}: {less} (90) is over {more} (80.5)"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[retry]\natempts = 2", 'unknown option "atempts" in [retry]; did you mean "attempts"?'),
        ("[retry]\nattempts = 1.5", "retry.attempts must be a whole number from 0 to 10, not 1.5"),
        ("[retry]\nbudget_percent = 101", "retry.budget_percent must be a number from 0 to 100, not 101"),
        ("[retry]\nmax_wait_seconds = -1", "retry.max_wait_seconds must be a number from 0 to 3600, not -1"),
        ("[breakers]\nopen_seconds = 1", 'unknown option "breakers"; did you mean "breaker"?'),
        ("[breaker]\nfailures = 1", 'unknown option "failures" in [breaker]'),
        ("[breaker]\nopen_second = 1", 'unknown option "open_second" in [breaker]; did you mean "open_seconds"?'),
        ("[providers.openai.limits]\nadaptive = 1", "providers.openai.limits.adaptive must be true or false, not 1"),
        (
            '[on_disconnect]\npolicy = "cancle"',
            'on_disconnect.policy must be "cancel" or "drain", not "cancle"; did you mean "cancel"?',
        ),
        (
            '[callers.web]\nkey = "env:OPENAI_API_KEY"\npriority = "hihg"',
            'callers.web.priority must be "high" or "low" or "normal", not "hihg"; did you mean "high"?',
        ),
        (
            '[callers.web]\nkey = "env:OPENAI_API_KEY"\nprioriti = "high"',
            'unknown option "prioriti" in [callers.web]; did you mean "priority"?',
        ),
        (
            '[providers.xai]\ntags = ["e u"]',
            "the name 'e u' has spaces or characters beyond ASCII, or no or too many",
        ),
        (
            '[providers.xai]\ntags = [""]',
            "the name '' has spaces or characters beyond ASCII, or no or too many",
        ),
        ('[providers.xai]\ntags = "eu"', "providers.xai.tags must be an array, not a string"),
        ("[providers.xai]\ntag = []", 'unknown option "tag" in [providers.xai]; did you mean "tags"?'),
    ],
)
def test_an_option_of_bad_days_at_fault(tmp_path: Path, line: str, message: str) -> None:
    text = OPENAI if "[providers.openai" not in line else ""
    assert messages(refused(tmp_path, f"{text}{line}\n")) == [message]


def test_what_holds_on_bad_days_by_default(tmp_path: Path) -> None:
    """A change of one is a change of what clients see."""
    found = config(tmp_path, f'{OPENAI}[callers.web]\nkey = "env:OPENAI_API_KEY"\n')
    assert found.retry == Retry(
        attempts=1, base_seconds=0.25, cap_seconds=4, max_wait_seconds=5, budget_percent=20, budget_minimum=3
    )
    assert found.breaker == Breaker(consecutive_failures=5, open_seconds=1, max_open_seconds=60)
    assert found.providers["openai"].breaker == found.breaker
    assert found.providers["openai"].limits.adaptive is False
    assert (found.providers["openai"].api_keys, found.providers["openai"].tags) == ((), ())
    assert found.on_disconnect.policy == "cancel"
    assert (found.callers["web"].priority, found.callers["web"].tags) == ("normal", ())


@pytest.mark.parametrize(
    "option", ["stale_seconds = 5", "max_bytes = 2097152", "temperature_max = 1", 'replay = "recorded"']
)
@pytest.mark.parametrize(
    ("on", "idle"),
    [("", True), ("ttl_seconds = 9", False), ("[models.a]\ntargets = 'openai/m'\ncache_ttl_seconds = 9", False)],
)
def test_options_of_a_cache_that_is_off_are_warned_of(tmp_path: Path, option: str, on: str, idle: bool) -> None:
    name = option.partition(" ")[0]
    told = [f"cache.{name} does nothing without cache.ttl_seconds, or a model's own"]
    found = read(tmp_path, f"{OPENAI}\n[cache]\n{option}\n{on}\n")
    assert messages(found.warnings) == (told if idle else [])
