"""The Jobs API's answers, good and bad; against Ray itself in `tests/e2e/test_submit.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_server import JobsServer, served

from cluster import jobs
from cluster.jobs import Job, Jobs, dashboard_url
from cluster.package import pack
from cluster.remote import ContactError, RefusedError, RemoteState, RemoteStatus
from cluster.tokens import Token

JOB = Job("first", "pretune run p.yaml", metadata={"who": "me"}, environment={"A": "1"})


@pytest.fixture
def server() -> Iterator[JobsServer]:
    with served(JobsServer("secret")) as one:
        yield one


@pytest.fixture
def client(server: JobsServer) -> Jobs:
    return Jobs(server.url, Token("secret"))


def test_a_job_is_submitted_once_with_its_files(
    server: JobsServer, client: Jobs, tmp_path: Path
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "p.yaml").write_text("x")
    package = pack(tmp_path / "f", tmp_path)
    job = Job("first", "pretune run p.yaml", package=package, driver_resources={"head": 0.001})
    assert client.submit(job)
    assert server.packages[package.name] == package.path.read_bytes()
    told = server.jobs["first"]
    assert told["runtime_env"] == {"working_dir": package.uri}
    assert told["entrypoint_resources"] == {"head": 0.001}
    assert not client.submit(job)
    server.jobs.clear()
    assert client.submit(job)
    assert sum(request.startswith("PUT") for request in server.requests) == 1


def test_another_run_of_the_same_name_is_not_taken_for_this_one(client: Jobs) -> None:
    assert client.submit(JOB)
    with pytest.raises(RefusedError, match=r"first with another command: pretune run p\.yaml"):
        client.submit(Job("first", "pretune run other.yaml", metadata={"who": "me"}))
    with pytest.raises(RefusedError, match="first with another metadata"):
        client.submit(Job("first", "pretune run p.yaml"))


def test_who_is_faster_wins_and_the_other_attaches(server: JobsServer, client: Jobs) -> None:
    """The job comes into being between the question whether it is there and the submission."""

    def meanwhile(request: str) -> None:
        if request == "POST /api/jobs/":
            server.jobs["first"] = JOB.as_request() | {"status": "RUNNING"}

    server.mishap = meanwhile
    assert not client.submit(JOB)


def test_a_lost_answer_is_no_second_run(server: JobsServer, client: Jobs) -> None:
    server.mishap = lambda request: 0 if request == "POST /api/jobs/" else None
    with pytest.raises(ContactError):
        client.submit(JOB)
    server.mishap = lambda request: None
    assert not client.submit(JOB)
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    ("token", "message"), [(None, "wants a token: give --token-file"), ("other", "refuses the tok")]
)
def test_tokens(server: JobsServer, token: str | None, message: str) -> None:
    client = Jobs(server.url, Token(token) if token else None)
    for call in (client.ray_version, client.all, lambda: client.get("x"), lambda: client.stop("x")):
        with pytest.raises(RefusedError, match=message):
            call()


def test_no_netrc_takes_the_place_of_the_token(
    client: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert client.ray_version() == "2.60.0"


def test_nobody_there_and_somebody_else_there(server: JobsServer, client: Jobs) -> None:
    with pytest.raises(ContactError, match=r"127\.0\.0\.1:9 does not answer"):
        Jobs("http://127.0.0.1:9", None).ray_version()
    with pytest.raises(RefusedError, match=r"is no Ray dashboard, whose port is 8265 .*HTTP 404"):
        Jobs(f"{server.url}/elsewhere", Token("secret")).all()
    server.mishap = lambda request: 500
    with pytest.raises(ContactError, match="HTTP 500: Error: a mishap"):
        client.get("x")


def test_a_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import socket

    monkeypatch.setattr(jobs, "_TIMEOUT_S", (0.3, 0.3))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ContactError, match="does not answer"):
            Jobs(url, None).all()


def test_status(server: JobsServer, client: Jobs) -> None:
    run = client.run("first")
    assert run.status() is None
    assert run.log() == ""
    with pytest.raises(RefusedError, match="knows of no run first"):
        run.stop()
    client.submit(JOB)
    assert run.status() == RemoteStatus(RemoteState.PENDING, "not yet. Nodes: 0, with no CPU.")
    server.jobs["first"] |= {"status": "FAILED", "driver_exit_code": 2, "message": "failed\nlog"}
    assert run.status() == RemoteStatus(RemoteState.FAILED, "its command ended with exit code 2", 2)
    server.jobs["first"] |= {"driver_exit_code": 127}
    status = run.status()
    assert status is not None
    assert "pretune is not in the PATH" in status.message
    run.stop()
    status = run.status()
    assert status is not None
    assert status.state is RemoteState.STOPPED
    assert status.is_ended


def test_who_waits_for_a_node_is_told_what_there_is(server: JobsServer, client: Jobs) -> None:
    node = {"CPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0, "GPU": 2.0}
    server.nodes = [
        {"state": "ALIVE", "resources_total": node},
        {"state": "ALIVE", "resources_total": {"CPU": 2.0, "head": 1.0}},
        {"state": "DEAD", "resources_total": {"CPU": 64.0}},
    ]
    client.submit(Job("first", "pretune run p.yaml", metadata={jobs.DRIVER_ON: "big"}))
    status = client.run("first").status()
    assert status is not None
    assert status.message == (
        "not yet. Its driver wants a node with big. Nodes: 2, with CPU 6, GPU 2, head 1."
    )


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org/team", "https://ray.example.org/team"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert dashboard_url(address) == url


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", r"Ray Train and Ray Tune.*--address http://head:8265"),
        ("ftp://head", "URL of a Ray dashboard"),
        ("http://", "URL of a Ray dashboard"),
        ("http://me:secret@head", "give a token by --token-file"),
    ],
)
def test_addresses_of_something_else(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as told:
        dashboard_url(address)
    assert "secret" not in str(told.value)
