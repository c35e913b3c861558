"""What the file says of limits and of Redis, and what is said of mistakes in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Redis, Secret, SharedLimit
from proxy.config.load import examine

KEY = "k" * 40


def read(tmp_path: Path, text: str, **environ: str):  # type: ignore[no-untyped-def]
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return examine(file, environ)


def config(tmp_path: Path, text: str, **environ: str):  # type: ignore[no-untyped-def]
    found = read(tmp_path, text, **environ)
    assert found.config is not None, found.problems
    return found.config


def complaint(tmp_path: Path, text: str) -> str:
    found = read(tmp_path, text)
    assert found.config is None
    (problem,) = found.problems
    return str(problem.message)


def test_every_scope_has_its_limits(tmp_path: Path) -> None:
    read = config(
        tmp_path,
        "limits:\n"
        "  - {scope: global, rpm: 6000}\n"
        "  - {scope: global, model: sim/chat, max_parallel_requests: 9}\n"
        "  - {scope: model, name: sim/echo, tpm: 5000}\n"
        "  - {scope: team, name: research, rpm: 60, burst: 10s}\n"
        "  - {scope: user, tpm: 1000}\n"
        "  - {scope: key, model: sim/chat, rpm: 3}\n",
    )
    assert read.limits == (
        SharedLimit(scope="global", rpm=6000),
        SharedLimit(scope="model", model="sim/chat", max_parallel=9),
        SharedLimit(scope="model", model="sim/echo", tpm=5000),
        SharedLimit(scope="team", name="research", rpm=60, burst_seconds=10),
        SharedLimit(scope="user", tpm=1000),
        SharedLimit(scope="key", model="sim/chat", rpm=3),
    )


def test_keys_of_the_file_have_limits_and_inherit_those_that_they_do_not_say(tmp_path: Path) -> None:
    read = config(
        tmp_path,
        "keys:\n  defaults: {rpm: 60, tpm: 1000, max_parallel_requests: 4}\n"
        f"  static: [{{name: ci, key: {KEY}, tpm: 9}}]\n",
    )
    (key,) = read.keys.static
    assert (key.rpm, key.tpm, key.max_parallel) == (60, 9, 4)
    assert read.keys.defaults.max_parallel == 4


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("{rpm: 1}", "limits[0] needs a scope."),
        ("{scope: global}", "limits[0] limits nothing: it needs rpm, tpm or max_parallel_requests."),
        ("{scope: global, name: x, rpm: 1}", "limits[0] is for everybody and has no name."),
        ("{scope: model, rpm: 1}", "limits[0] needs the name of a model."),
        (
            "{scope: model, name: sim/chat, model: sim/chat, rpm: 1}",
            "limits[0] names its model already: leave out model.",
        ),
        ("{scope: provider, rpm: 1}", "limits[0].scope must be global or model or team or user or key, not"),
        ("{scope: global, rpm: 0}", "limits[0].rpm must be a whole number from 1 to 1000000000, not"),
        ("{scope: global, rpm: 1, burst: 2h}", "limits[0].burst must be from 1s to 1h, not"),
        ("{scope: global, rpm: 1}, {scope: global, tpm: 1}", "limits[1]: another limit of this file is for the same."),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, limit: str, says: str) -> None:
    assert complaint(tmp_path, f"limits: [{limit}]").startswith(says)


def test_a_deployment_says_what_it_is_good_for(tmp_path: Path) -> None:
    read = config(tmp_path, "models: {m: {deployments: [{model: sim/chat, rpm: 6, tpm: 7}, {model: sim/echo}]}}")
    assert [(one.rpm, one.tpm) for one in read.models["m"].deployments] == [(6, 7), (None, None)]


def test_a_limit_for_a_model_that_nobody_has_is_a_warning(tmp_path: Path) -> None:
    found = read(tmp_path, "limits: [{scope: model, name: nothing, rpm: 1}]")
    assert found.config is not None
    assert [problem.message for problem in found.problems] == ['limits[0]: no model is called "nothing".']


def test_redis_is_where_the_file_or_the_environment_says(tmp_path: Path) -> None:
    assert config(tmp_path, "").redis == Redis()
    assert config(tmp_path, "", REDIS_URL="rediss://h:1/0").redis.url == Secret("rediss://h:1/0")
    read = config(tmp_path, "redis: {url: 'redis://h:1', limits: strict, sentinel_master: ours, prefix: blue}")
    assert read.redis == Redis(url=Secret("redis://h:1"), limits="strict", sentinel_master="ours", prefix="blue")


@pytest.mark.parametrize(
    ("redis", "says"),
    [
        ("{url: 'http://h'}", "redis.url must begin with redis:// or, with TLS, rediss://"),
        ("{url: 'redis://h:abc'}", "redis.url has no number where its port should be."),
        ("{url: 'redis://h:1/x'}", "redis.url must end with the number of a database, like /0"),
        ("{prefix: 'a b'}", "redis.prefix must be up to 64 letters, digits"),
        ("{cluster: true, sentinel_master: ours}", "redis.sentinel_master and redis.cluster exclude each other."),
    ],
)
def test_a_mistake_about_redis_is_named(tmp_path: Path, redis: str, says: str) -> None:
    assert complaint(tmp_path, f"redis: {redis}").startswith(says)


def test_a_password_in_the_file_is_flagged_and_never_shown(tmp_path: Path) -> None:
    found = read(tmp_path, "redis: {url: 'redis://u:hunter2hunter2@h:1'}")
    assert found.config is not None
    assert "REDIS_URL" in found.problems[0].message
    assert "hunter2" not in repr(found)
