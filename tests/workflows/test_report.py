import re
from datetime import timedelta
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reported import BEGAN_AT, METRIC, RUN, Story, search, verdict, write_rows

from trainers.task_types.base import Prediction
from workflows.report import headlines, timeline
from workflows.report import page as report
from workflows.report.page import render
from workflows.report.scoring import Score, fractions, scores, worth

RESULT = {
    "metric": "accuracy",
    "lower_is_better": False,
    "seeds": {
        "pretrained": [{"accuracy": 0.80}, {"accuracy": 0.82}, {"accuracy": 0.84}],
        "scratch": [{"accuracy": 0.70}],
    },
    "label_fractions": [
        {
            "fraction": 0.1,
            "rows": 9,
            "baselines": {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.55}},
            "pretrained": [{"accuracy": 0.6}],
            "scratch": [],
        },
        {
            "fraction": 1.0,
            "rows": 90,
            "baselines": {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.83}},
            "pretrained": [{"accuracy": 0.80}, {"accuracy": 0.82}, {"accuracy": 0.84}],
            "scratch": [{"accuracy": 0.70}],
        },
    ],
    "baselines": {"majority": {"accuracy": 0.5}, "tf-idf": {"accuracy": 0.83}},
}


def test_scores_stand_best_first_whoever_wins() -> None:
    found = scores(RESULT)
    assert [score.method for score in found] == [
        "tf-idf",
        "fine-tuned from the base",
        "same network from random weights",
        "majority",
    ]


def test_mean_and_spread_are_over_seeds() -> None:
    tuned = scores(RESULT)[1]
    assert tuned.trainings == 3
    assert abs(tuned.mean - 0.82) < 1e-12
    assert tuned.spread is not None
    assert abs(tuned.spread - 0.02) < 1e-12


def test_one_training_has_no_spread() -> None:
    assert scores(RESULT)[2] == Score("same network from random weights", 0.70, None, 1)


def test_task_without_control_has_no_line_for_it() -> None:
    without = {**RESULT, "seeds": {**RESULT["seeds"], "scratch": []}}  # type: ignore[dict-item]
    assert len(scores(without)) == 3


VOID = {"br", "img", "link", "meta"}
HOSTILE = '<script>alert("&$x^{$")</script>'


class Page(HTMLParser):
    """A page as a reader's program takes it: what is nested wrongly raises."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.captions: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        if tag == "p":
            assert "p" not in self.open
        if tag in ("td", "th"):
            assert self.open[-1] == "tr"
        if tag == "tr":
            assert self.open[-1] in ("thead", "tbody")
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def of(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a name."""
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """A run of two tasks after a pretraining."""
    found = Story(tmp_path)
    found.pretrained()
    found.task("tone", "classification", trials=search("accuracy", 9))
    found.task("places", "token_classification")
    return found


@pytest.fixture
def page(story: Story) -> str:
    """Its report."""
    return render(*story.told, run=RUN, commit="c0ffee1234567890-dirty")


def words(page: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)).split())


def test_page_has_every_section_in_order(page: str) -> None:
    sections = re.findall(r'<h2 id="([^"]+)">', page)
    assert sections == [
        "summary",
        "outcome",
        "steps",
        "data",
        "pretraining",
        "task-tone",
        "task-places",
        "costs",
        "lineage",
    ]
    of_tone = page[page.index('id="task-tone"') : page.index('id="task-places"')]
    assert re.findall(r"<h3>(.*?)</h3>", of_tone) == [
        "What transfer was worth",
        "Verdict",
        "With fewer labels",
        "Which labels it takes for which",
        "Its worst mistakes",
        "Trials",
    ]


def test_page_is_well_formed_and_every_part_is_named(page: str) -> None:
    found = Page(page)
    ids = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids
    targets = {(link["href"] or "").removeprefix("#") for link in found.of("a")}
    assert targets <= set(ids)
    assert all((image["alt"] or "").endswith(".") for image in found.of("img"))
    assert {cell.get("scope") for cell in found.of("th")} == {"row", "col"}
    assert len(found.of("caption")) == len(found.of("table"))
    assert found.of("html") == [{"lang": "en"}]
    assert page.startswith("<!doctype html>")
    assert found.of("details")
    assert found.of("a")[0] == {"class": "skip", "href": "#main"}


def test_page_needs_no_network_and_runs_no_code(page: str) -> None:
    assert "http://" not in page
    assert "https://" not in page
    found = Page(page)
    assert not found.of("script")
    assert not found.of("link")
    assert all(str(image["src"]).startswith("data:") for image in found.of("img"))
    assert "@import" not in page
    assert "url(" not in page
    assert not any(name.startswith("on") for _, a in found.tags for name in a)


def test_same_steps_make_the_same_page(story: Story, page: str) -> None:
    assert render(*story.told, run=RUN, commit="c0ffee1234567890-dirty") == page


def test_summary_has_five_lines(page: str) -> None:
    lines = re.findall(r"<div><dt>(.*?)</dt>(.*?)</div>", page, re.S)
    assert [name for name, _ in lines] == [
        "Promoted",
        "Not promoted",
        "Best score",
        "Worth of the base",
        "Time",
    ]
    told = {name: words(text) for name, text in lines}
    assert told["Promoted"] == ("tiny.tone@1: the first model tiny.places@1: the first model")
    assert told["Not promoted"] == "nothing was held back"
    assert told["Best score"].startswith(
        "tone: accuracy 0.8200 ± 0.0200, no better than 0.8300 of tf-idf, the best without"
    )
    assert "is 0.1200 better than that of the same network" in told["Worth of the base"]
    assert "0.7000" in told["Worth of the base"]
    assert told["Time"] == "22.0 s of work in 11 steps; 11 steps computed by this run in 32.0 s"


def test_a_model_that_is_kept_back_and_a_task_that_failed_are_told() -> None:
    kept = {"tone.promote": {**verdict("p.tone@2", "luck"), "promoted": False, "outcome": "waits"}}
    lines = headlines.headlines(["tone", "places"], {}, kept, [], None)
    assert [line.told for line in lines[:2]] == [
        ["nothing"],
        ["p.tone@2 (waits): luck", "places: it did not get that far"],
    ]


@pytest.mark.parametrize(
    ("own", "control", "lower", "told"),
    [
        ([0.8, 0.9], [0.5], False, "0.3500 better than"),
        ([0.8, 0.9], [0.84], False, "which is within the spread over seeds"),
        ([0.5], [0.9], True, "0.4000 better than"),
        ([0.9], [0.5], True, "0.4000 worse than"),
        ([0.9], [0.9], False, "no better than"),
        ([0.9], [], False, "unknown, for no control was trained"),
    ],
)
def test_worth_of_the_base_is_told_by_its_direction_and_doubt(
    own: list[float], control: list[float], lower: bool, told: str
) -> None:
    seeds = {"pretrained": [{"m": v} for v in own], "scratch": [{"m": v} for v in control]}
    found = {"metric": "m", "lower_is_better": lower, "seeds": seeds, "baselines": {}}
    line = headlines.headlines(["t"], {"t": found}, {}, [], None)[3]
    assert told in line.told[0]
    assert ("within the spread" in line.told[0]) == ("within the spread" in told)
    assert (worth(found) is None) == (control == [])


def test_steps_tell_who_computed_them_and_what_they_read(story: Story) -> None:
    story.step("mine", "custom", "corpus", run="tiny-before", elapsed_s=3725.0)
    story.steps.append("never")
    seen = words(render(*story.told, run=RUN))
    assert "mine reused 1:02:05 tiny-before corpus" in seen
    assert "tone.tune done 2.0 s this run tone.data" in seen
    assert "never not done" in seen
    assert "11 steps computed by this run in 32.0 s, 1 reused" in seen


def test_chart_of_times_is_of_the_run_s_own_steps(story: Story, page: str) -> None:
    alts = [str(image["alt"]) for image in Page(page).of("img")]
    told = "When 11 steps ran, by seconds: the longest is corpus with 2.0 s, the last to end"
    assert alts[0] == f"{told} places.promote after 32.0 s."
    other = [str(i["alt"]) for i in Page(render(*story.told, run="another")).of("img")]
    assert not any(alt.startswith("When ") for alt in other)


def test_pretraining_is_told_with_its_troubles(page: str) -> None:
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert titles[1:6] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "Peak memory of the first worker",
    ]
    seen = words(page)
    assert "3 steps skipped, 1 rollback" in seen
    assert "5 2 8 to 20 the loss is <nan>" in seen
    assert "most memory of a worker 646 MB" in seen
    assert "3 4 2.2" in seen
    assert "corpus.txt c0ffee0000000000" in seen
    assert "secret" not in page
    assert "Loss by tokens: training from 6 to 1; validation from 3.05 to 1.017." in page


def test_pretraining_without_a_history_is_left_out(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.step("pretrain", "pretrain", facts={"adopted": True})
    assert 'id="pretraining"' not in render(*story.told)


def test_trials_are_drawn_and_what_mattered_is_told_with_its_doubt(page: str) -> None:
    of_tone = page[page.index('id="task-tone"') : page.index('id="task-places"')]
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", of_tone)
    assert titles == [
        "Test scores",
        "With fewer labels",
        "Learning curves",
        "Best so far",
        "Hyperparameters and scores",
        "What mattered",
    ]
    assert "learning_rate, method, lora_rank) and accuracy on validation rows" in of_tone
    assert "What mattered is a hint, not a proof: a random forest of 9 trials" in of_tone
    assert "What mattered" not in page[page.index('id="task-places"') :]  # three trials


def test_verdict_stands_with_its_statistics(page: str) -> None:
    seen = words(page)
    assert "always the same answer 0.5000 +0.3200 +0.2500 to +0.4000 0.0001 60" in seen
    assert "size_mb 0.17 accuracy of slice short 0.7500" in seen


def test_confusion_and_worst_mistakes_stand_with_their_texts(page: str) -> None:
    seen = words(page)
    assert "Most often good is taken for bad: 1 time." in seen
    assert "2 of 4 test rows are answered wrongly" in seen
    assert "a terrible day bad good 0.8 a day good bad 0.6" in seen
    assert "<mark>Rome</mark>" in page
    assert "Rome: B-LOC Rome: O 0.75" in seen


def test_rows_that_are_not_those_of_the_predictions_are_not_shown(story: Story) -> None:
    rows = [("another text", "bad")] * 4
    write_rows(story.finished["tone.data"].output, ["bad", "good"], rows)
    page = render(*story.told, run=RUN)
    of_tone = page[page.index('id="task-tone"') : page.index('id="task-places"')]
    assert "Its worst mistakes" not in of_tone
    assert "Which labels" not in of_tone
    assert "another text" not in page


@pytest.mark.parametrize("kind", METRIC)
def test_every_type_of_task_has_a_report(tmp_path: Path, kind: str) -> None:
    story = Story(tmp_path)
    story.task("mine", kind)
    page = render(*story.told, run=RUN)
    Page(page)
    has_matrix = kind in ("classification", "token_classification")
    assert ("Confusion matrix" in page) == has_matrix
    assert "Its worst mistakes" in page
    expected = {
        "classification": "a terrible day bad good 0.8",
        "multi_label": "dear and slow (nothing) cheap 0.95",
        "regression": "one star 1 4.25 3.25",
        "token_classification": "Rome: B-LOC Rome: O 0.75",
        "question_answering": "in 1912. Rome in 1912 0",
        "generation": "two and two four five 2.5",
    }
    assert expected[kind] in words(page)


def test_hostile_text_is_text_everywhere(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.pretrained()
    trials = search("accuracy", 9)
    trials[0] |= {"status": "failed", "error": HOSTILE, "history": []}
    for n, trial in enumerate(trials):
        trial["hyperparameters"][HOSTILE] = f"{HOSTILE}{n % 2}"
    said = Prediction(HOSTILE, 0.9, [0.9, 0.1])
    story.task(
        "tone",
        "classification",
        labels=[HOSTILE, "good"],
        rows=[(HOSTILE, "good", said), ("see http://x.org/a and https://y", HOSTILE, said)],
        trials=trials,
    )
    story.task("places", "token_classification", rows=[([HOSTILE], ["O"], _of_words())])
    story.promotions["tone.promote"] = verdict(HOSTILE, HOSTILE)
    story.step(HOSTILE, "custom", "corpus", run=HOSTILE, outside={f"/a/{HOSTILE}": "0" * 64})
    page = render(HOSTILE, *story.told[1:], run=HOSTILE, commit=HOSTILE)
    assert "<script" not in page
    assert not Page(page).of("script")
    assert page.count(escape(HOSTILE)[:20]) > 20
    assert "http://" not in page
    assert "https://" not in page
    assert "see http://x.org/a and https://y" not in page
    assert HOSTILE in words(page)


def _of_words() -> Prediction:
    return Prediction([HOSTILE], [0.9])


def test_run_whose_first_step_failed_has_a_report() -> None:
    page = render("tiny", ["tone.data", "corpus", "tone.tune", "tone.final"], {}, {}, run=RUN)
    Page(page)
    seen = words(page)
    assert "tone: it did not get that far" in seen
    assert "Time no step was finished" in seen
    assert "It did not get far enough to tell anything." in seen
    assert seen.count("not done") == 4
    assert "<img" not in page
    assert re.findall(r'<h2 id="([^"]+)">', page) == ["summary", "outcome", "steps", "task-tone"]


def test_task_without_trials_that_ended_is_no_obstacle(tmp_path: Path) -> None:
    story = Story(tmp_path)
    trials = search("accuracy", 2)
    for trial in trials:
        trial |= {"history": [], "status": "failed", "error": "out of memory"}
    trials[1]["history"] = [{"accuracy": float("nan")}]
    story.task("tone", "classification", trials=trials)
    assert "failed: out of memory" in words(render(*story.told))


def test_page_of_many_tasks_stays_under_two_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(tmp_path)
    for n in range(4):
        story.task(f"tone{n}", "classification", trials=search("accuracy", 3))
    whole = render(*story.told)
    assert "leave no room" not in whole
    assert len(whole.encode()) < 2_000_000
    monkeypatch.setattr(report, "MOST_BYTES", len(whole.encode()) - 1)
    fewer = render(*story.told)
    assert "leave no room" in fewer
    assert "<figcaption>Test scores" in whole
    assert "<figcaption>Test scores" not in fewer
    assert "The 2 worst" in fewer
    monkeypatch.setattr(report, "MOST_BYTES", len(fewer.encode()) - 1)
    least = render(*story.told)
    assert "The 2 worst" not in least
    assert len(least) < len(fewer) < len(whole)
    Page(least)


def test_thousands_of_trials_stay_under_two_megabytes(tmp_path: Path) -> None:
    story = Story(tmp_path)
    story.task("tone", "classification", trials=search("accuracy", 2000))
    page = render(*story.told)
    assert len(page.encode()) < 2_000_000
    assert "2,000 trials, the best 100 shown" in page


def test_costs_and_lineage_are_those_of_the_records(page: str) -> None:
    seen = words(page)
    assert "22.0 s of steps, 16.5 kB of output." in seen
    assert "busy with 2 workers" not in seen
    assert "Pretraining kept 2 workers busy for 30:00, 1 worker hours." in seen
    assert "corpus 2.0 s 9.1 % 1.5 kB 1" in seen
    assert "c0ffee1234567890-dirty" in seen
    assert "python 3.11.7" in seen
    of_tone = page[page.index("<summary>tone: ") :]
    assert words(of_tone).startswith(
        "tone: 4 steps What tone rests on step fingerprint code read from outside"
    )
    assert "03ffffffffff" in of_tone


def test_times_of_a_run_begin_with_its_first_step(story: Story) -> None:
    records = [one.record for one in story.finished.values()]
    assert records[0].finished_at == BEGAN_AT.isoformat()
    first, second, *_ = timeline.spans(records, RUN)
    assert (first.name, first.begin_s, first.end_s) == ("corpus", 0.0, 2.0)
    assert timedelta(seconds=second.begin_s) == timedelta(seconds=3)
    assert timeline.spans(records, None) == []


def test_what_became_of_the_documents_is_told(story: Story, page: str) -> None:
    for name, value in [
        ("documents to train on", "12,345"),
        ("duplicates left out", "67"),
        ("lines, rows and files that could not be read", "0"),
        ("share of padding", "0.000806"),
    ]:
        assert f'<tr><th scope="row">{name}</th><td class="n">{value}</td></tr>' in page
    assert 'id="data"' not in render("p", story.steps, {}, {})


def test_shares_of_labels_are_told_by_number_with_the_base_and_without() -> None:
    (few, few_scores), (all_rows, all_scores) = fractions(RESULT)
    assert (few, all_rows) == (9, 90)
    assert few_scores == [
        Score("fine-tuned from the base", 0.6, None, 1),
        Score("tf-idf", 0.55, None, 1),
    ]
    assert [score.method for score in all_scores] == [
        "fine-tuned from the base",
        "same network from random weights",
        "tf-idf",
    ]
