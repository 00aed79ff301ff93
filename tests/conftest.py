"""Small real pipelines: text from the standard library, models under 100,000 parameters."""

import logging
import os
import random
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING, Any

import boto3
import pytest
import yaml
from hypothesis import HealthCheck, settings
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from cluster.config import ClusterConfig, RetryConfig
from workflows.storage import Storage

if TYPE_CHECKING:
    from cluster.ray_cluster import RayCluster

# Time is never asserted, nor by Hypothesis: a busy machine is no defect.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

TOYS = str(Path(__file__).parent / "cluster")
"""Where workers of a cluster find the module `toys`, as this process does."""

WORDS = [word for text in topics.values() for word in text.split() if word.isalpha()]


def write_corpus(path: Path, documents: int = 400) -> None:
    """Paragraphs of English prose, one document a line."""
    text = "\n\n".join(topics.values())
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if len(part) > 80]
    path.write_text("\n".join(paragraphs[:documents]), encoding="utf-8")


def write_classification(path: Path, rows: int = 240) -> None:
    """Rows whose label can be read off one of their words."""
    generator = random.Random(0)
    marks = {"good": "wonderful", "bad": "terrible"}
    lines = ["text,label"]
    for number in range(rows):
        label = generator.choice(list(marks))
        words = generator.choices(WORDS, k=6)
        words.insert(generator.randrange(6), marks[label])
        lines.append(f"{' '.join(words)} {number},{label}")
    path.write_text("\n".join(lines), encoding="utf-8")


def write_entities(path: Path, sentences: int = 120) -> None:
    """Sentences in which the word after 'in' is a place."""
    generator = random.Random(1)
    lines = []
    for number in range(sentences):
        lines += [f"{word}\tO" for word in [*generator.choices(WORDS, k=4), f"n{number}"]]
        lines += ["in\tO", f"{generator.choice(['Paris', 'Rome', 'Oslo'])}\tB-place", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_pairs(path: Path, rows: int = 320) -> None:
    """Pairs of words; the label says whether they are the same, the number how alike they are."""
    generator = random.Random(0)
    words = WORDS[:8]
    lines = ["first,second,label,number"]
    for number in range(rows):
        word = generator.choice(words)
        is_same = generator.random() < 0.5
        other = word if is_same else generator.choice([w for w in words if w != word])
        lines.append(f"{word} {number},{other},{'same' if is_same else 'other'},{int(is_same)}")
    path.write_text("\n".join(lines), encoding="utf-8")


def save_base(folder: Path) -> None:
    """A Hugging Face folder of a small decoder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainers import tokenizer
    from trainers.config import TokenizerConfig

    config = TokenizerConfig(train="bpe", vocab_size=300)
    tokenizer.build(config, folder, [" ".join(WORDS[:2000])], 64).save_pretrained(folder)
    network = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(network).save_pretrained(folder)


def save_classifier(folder: Path, labels: Sequence[str], *, of_words: bool = False) -> Path:
    """A Hugging Face folder of a small encoder with a head, of random weights."""
    from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

    from trainers import tokenizer
    from trainers.config import TokenizerConfig

    config = TokenizerConfig(train="bpe", vocab_size=300)
    tokenizer.build(config, folder, [" ".join(WORDS[:2000])], 64).save_pretrained(folder)
    network = BertConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=1.0,  # or it would say the same of every text
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    head = BertForTokenClassification if of_words else BertForSequenceClassification
    head(network).save_pretrained(folder)
    return folder


def tiny_pipeline(folder: Path) -> dict[str, Any]:
    """A whole pipeline as it stands in YAML, with its data written to `folder`."""
    write_corpus(folder / "corpus.txt")
    write_classification(folder / "tone.csv")
    write_entities(folder / "places.txt")
    return {
        "name": "tiny",
        "storage": str(folder / "storage"),
        "corpus": {
            "sources": [{"path": "corpus.txt"}],
            "validation_fraction": 0.1,
            "held_out": ["tone"],
            "shard_bytes": 64 * 1024,
        },
        "tokenizer": {"train": "bpe", "vocab_size": 512},
        "model": {
            "architecture": "llama",
            "config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
        },
        "pretrain": {
            "sequence_length": 64,
            "tokens": 20 * 256,
            "global_batch_tokens": 256,
            "learning_rate": 3e-3,
            "zero": {"stage": 1},
            "checkpoint": {"every_steps": 5},
        },
        "tasks": {
            "tone": {
                "type": "classification",
                "data": {
                    "path": "tone.csv",
                    "split": {"test": 0.25, "validation": 0.25},
                },
                "metric": "accuracy",
                "max_length": 64,
                "search": {
                    "trials": 2,
                    "searcher": "random",
                    "scheduler": "asha",
                    "space": {"learning_rate": [0.01, 0.003], "epochs": 2, "dropout": 0.0},
                },
                "final": {"top": 1, "seeds": 2},
                "controls": {"scratch": True, "scratch_learning_rates": [1.0]},
                "promote": {
                    "guards": {"size_mb": 10, "latency": {"p95_ms": 10_000}, "seed_spread": 0.5}
                },
            },
            "places": {
                "type": "token_classification",
                "data": {
                    "path": "places.txt",
                    "format": "conll",
                    "split": {"test": 0.25, "validation": 0.25},
                },
                "metric": "entity_f1",
                "max_length": 64,
                "search": {
                    "trials": 2,
                    "searcher": "tpe",
                    "space": {"learning_rate": {"loguniform": [0.003, 0.03]}, "epochs": 2},
                },
                "final": {"top": 1, "seeds": 1},
            },
        },
        "cluster": {"pretrain": {"workers": 2}, "retry": {"delay_s": 0.1}},
    }


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test, and no process a test starts, writes into the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def pipeline(tmp_path: Path) -> dict[str, Any]:
    """The tiny pipeline, to be changed by a test before it is written."""
    return tiny_pipeline(tmp_path)


def write_pipeline(folder: Path, data: dict[str, Any]) -> Path:
    """Write a pipeline file."""
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def s3(monkeypatch_session: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket on an S3 server in this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_at_once(response: S3Response) -> Any:
        with one_at_a_time:  # S3 itself looks and writes in one act, where it is to create
            return put(response)

    monkeypatch_session.setattr(S3Response, "put_object", put_at_once)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in settings.items():
        monkeypatch_session.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket"
    server.stop()


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator["RayCluster"]:
    """A Ray of this machine for the tests of one module, which knows the S3 server, too."""
    from cluster.ray_cluster import connect

    config = ClusterConfig(retry=RetryConfig(max_attempts=2, delay_s=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TOYS, prepend=os.pathsep)
        with connect(config) as connected:
            yield connected


@pytest.fixture(scope="module")
def no_token() -> Iterator[None]:
    """Rays of several nodes without authentication, whose processes find the module `toys`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", TOYS, prepend=os.pathsep)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A local Ray turns authentication on for all of its process that comes later."""
    items.sort(key=lambda item: "no_token" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def monkeypatch_session() -> Iterator[pytest.MonkeyPatch]:
    """Environment variables for the whole session."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage in a folder, and on an object store."""
    if request.param == "local":
        return Storage.at(tmp_path / "storage")
    found: Storage = request.getfixturevalue("remote")
    return found


@pytest.fixture
def remote(s3: str) -> Storage:
    """An empty storage on an object store."""
    return Storage.at(f"{s3}/{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    """An empty storage in a folder."""
    return Storage.at(tmp_path / "storage")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; needs the right to mount."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a file system here; the injected error is tested all the same")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
