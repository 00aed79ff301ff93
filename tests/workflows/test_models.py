import threading
from pathlib import Path

import pytest

from workflows.models import ChampionChangedError, ModelStore, ModelStoreError, Version
from workflows.storage import Storage

NAME = "tiny.tone"


@pytest.fixture
def store(storage: Storage) -> ModelStore:
    return ModelStore(storage)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    return path


def add(store: ModelStore, folder: Path, fingerprint: str) -> Version:
    return store.add(
        NAME,
        folder,
        fingerprint=fingerprint,
        attempt=f"attempt-{fingerprint}",
        task={},
        scores={"accuracy": 0.8},
    )


def promote(store: ModelStore, version: Version, expected: Version | None) -> None:
    store.promote(version, expected=expected, reason="better", run="run")


def test_versions_count_up_and_the_same_training_is_added_once(
    store: ModelStore, folder: Path
) -> None:
    first, again, second = (add(store, folder, name) for name in ("a", "a", "b"))
    assert (first.number, again.number, second.number) == (1, 1, 2)
    assert store.versions(NAME) == [first, second]
    assert store.facts(second)["scores"] == {"accuracy": 0.8}


def test_files_without_an_entry_are_no_version(
    store: ModelStore, storage: Storage, folder: Path
) -> None:
    add(store, folder, "a")
    storage.delete(f"models/{NAME}/versions/000001.json")
    assert store.versions(NAME) == []
    assert store.names() == []
    assert add(store, folder, "b").number == 1


def test_alias_moves_only_from_the_champion_that_was_seen(store: ModelStore, folder: Path) -> None:
    first, second, third = (add(store, folder, name) for name in "abc")
    promote(store, first, None)
    with pytest.raises(ChampionChangedError):
        promote(store, second, None)
    promote(store, second, first)
    with pytest.raises(ChampionChangedError):
        promote(store, third, first)
    assert store.champion(NAME) == second
    assert [(e["version"], e["previous"]) for e in store.log(NAME)] == [(1, None), (2, 1)]


def test_a_rollback_goes_to_the_champion_before_and_is_written_down(
    store: ModelStore, folder: Path
) -> None:
    first, second = add(store, folder, "a"), add(store, folder, "b")
    promote(store, first, None)
    with pytest.raises(ModelStoreError, match="no champion before"):
        store.before(NAME)
    promote(store, second, first)
    assert store.before(NAME) == first
    store.promote(first, expected=second, reason="wrong on irony", run=None, how="rollback")
    assert store.champion(NAME) == first
    last = store.log(NAME)[-1]
    assert (last["how"], last["previous"], last["reason"]) == ("rollback", 2, "wrong on irony")
    assert "@" in last["by"]
    assert store.before(NAME) == second


def test_a_candidate_is_no_champion_until_it_is_promoted(store: ModelStore, folder: Path) -> None:
    first, second = add(store, folder, "a"), add(store, folder, "b")
    promote(store, first, None)
    for _ in range(2):
        store.promote(second, expected=first, reason="better", run="run", alias="candidate")
    assert (store.champion(NAME), store.candidate(NAME)) == (first, second)
    assert store.resolve(f"{NAME}@candidate") == second
    assert len(store.log(NAME)) == 2
    promote(store, second, first)
    assert (store.champion(NAME), store.candidate(NAME)) == (second, None)
    with pytest.raises(ModelStoreError, match="no candidate now"):
        store.resolve(f"{NAME}@candidate")


def test_a_promotion_that_is_missing_is_an_error(
    store: ModelStore, storage: Storage, folder: Path
) -> None:
    first, second = add(store, folder, "a"), add(store, folder, "b")
    promote(store, first, None)
    promote(store, second, first)
    storage.delete(f"models/{NAME}/log/000001.json")
    with pytest.raises(ModelStoreError, match="entries are missing"):
        store.champion(NAME)


def test_tags_are_kept_changed_and_taken_back(store: ModelStore, folder: Path) -> None:
    version = add(store, folder, "a")
    assert store.tags(version) == {}
    store.tag(version, {"reviewed": "yes", "by": "a"})
    store.tag(version, {"by": ""})
    assert store.tags(version) == {"reviewed": "yes"}


def test_promoting_the_champion_again_writes_nothing(store: ModelStore, folder: Path) -> None:
    version = add(store, folder, "a")
    promote(store, version, None)
    promote(store, version, None)
    assert len(store.log(NAME)) == 1


def test_of_many_promotions_at_once_one_wins(store: ModelStore, folder: Path) -> None:
    versions = [add(store, folder, str(number)) for number in range(8)]
    barrier, lost = threading.Barrier(8), []

    def challenge(version: Version) -> None:
        barrier.wait()
        try:
            promote(store, version, None)
        except ChampionChangedError:
            lost.append(version)

    threads = [threading.Thread(target=challenge, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.log(NAME)) == 1
    assert len(lost) == 7
    assert store.champion(NAME) not in lost


def test_versions_added_at_once_get_numbers_of_their_own(store: ModelStore, folder: Path) -> None:
    barrier = threading.Barrier(8)

    def challenge(number: int) -> None:
        barrier.wait()
        add(store, folder, str(number))

    threads = [threading.Thread(target=challenge, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [version.number for version in store.versions(NAME)] == list(range(1, 9))


def test_references_are_resolved(store: ModelStore, folder: Path) -> None:
    first, second = add(store, folder, "a"), add(store, folder, "b")
    promote(store, first, None)
    assert store.resolve(NAME) == first
    assert store.resolve(f"{NAME}@champion") == first
    assert store.resolve(f"{NAME}@2") == second


@pytest.mark.parametrize(
    "reference",
    ["tiny.other", f"{NAME}@3", f"{NAME}@champion", "../tone", "tiny.tone/..", "", "@1"],
)
def test_reference_to_nothing_is_refused(store: ModelStore, folder: Path, reference: str) -> None:
    add(store, folder, "a")
    with pytest.raises(ModelStoreError):
        store.resolve(reference)


@pytest.mark.parametrize("name", ["../x.y", "a/b.c", "nodot", "A.b"])
def test_name_that_could_leave_the_store_is_refused(
    store: ModelStore, folder: Path, name: str
) -> None:
    with pytest.raises(ModelStoreError):
        store.add(name, folder, fingerprint="a", attempt="a", task={}, scores={})


def test_flipped_bit_is_found_and_named(store: ModelStore, storage: Storage, folder: Path) -> None:
    version = add(store, folder, "a")
    name = f"{store.facts(version)['folder']}/model.safetensors"
    assert store.folder(version) == storage.url(store.facts(version)["folder"])
    content = bytearray(storage.read(name))
    content[100] ^= 1
    storage.write(name, bytes(content))
    with pytest.raises(ModelStoreError, match=r"model\.safetensors has other bytes"):
        store.verified(version)


def test_intact_version_is_given_as_a_folder(store: ModelStore, folder: Path) -> None:
    version = add(store, folder, "a")
    for _ in range(2):
        assert (store.verified(version) / "config.json").read_text() == "{}"


def test_step_computed_anew_makes_another_version(store: ModelStore, folder: Path) -> None:
    first = store.add(NAME, folder, fingerprint="a", attempt="1", task={}, scores={})
    again = store.add(NAME, folder, fingerprint="a", attempt="2", task={}, scores={})
    assert (first.number, again.number) == (1, 2)
