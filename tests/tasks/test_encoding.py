"""Encoding against cases worked out by hand, token by token."""

import re

import pytest

from wayward_jax.errors import InputError
from wayward_jax.tasks import TASKS, Task, count_truncated, encode


class ToyTokenizer:
    """Splits words into pieces of at most five characters; a space belongs to the word after it.

    `" It was terrible ."` is `" It", " was", " terri", "ble", " ."`.
    """

    eos_id = 0

    def __init__(self):
        self.pieces = ["<eos>"]

    def encode(self, text):
        for piece in (found := re.findall(r" ?\S{1,5}|\s", text)):
            if piece not in self.pieces:
                self.pieces.append(piece)
        return [self.pieces.index(piece) for piece in found]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    encode_continuations = encode_batch  # a space belongs to the word after it, also at the start

    def read(self, ids):
        return [self.pieces[i] for i in ids]


@pytest.fixture
def tokenizer():
    return ToyTokenizer()


def own_task(templates, label_words, max_length=128):
    labels = tuple(str(i) for i in range(len(label_words)))
    return Task("own", labels, templates, label_words, max_length)


def read(tokenizer, encoded):
    """Decodes an example: contexts and continuations per label, as lists of strings."""
    return [[tokenizer.read(ids) for ids in part] for part in encoded]


def test_direct_scores_from_the_first_token_that_differs_through_eos(tokenizer):
    (encoded,) = encode(TASKS["sst2"], ["a dull film"], tokenizer)
    contexts, continuations = read(tokenizer, encoded)
    assert contexts == [["a", " dull", " film", " It", " was"]] * 2
    assert continuations == [[" terri", "ble", " .", "<eos>"], [" great", " .", "<eos>"]]


def test_channel_scores_the_text_through_eos(tokenizer):
    (encoded,) = encode(TASKS["sst2"], ["a dull film"], tokenizer, method="channel")
    contexts, continuations = read(tokenizer, encoded)
    assert contexts == [["It", " was", " terri", "ble", " ."], ["It", " was", " great", " ."]]
    assert continuations == [[" a", " dull", " film", "<eos>"]] * 2


FILLED = [  # every template of the paper, with each task's first label word
    ("sst2", 0, "A terrible one ."),
    ("sst2", 1, "It was terrible ."),
    ("sst2", 2, "All in all terrible ."),
    ("sst2", 3, "A terrible piece ."),
    ("sst5", 0, "A terrible one ."),
    ("sst5", 1, "It was terrible ."),
    ("sst5", 2, "All in all terrible ."),
    ("sst5", 3, "A terrible piece ."),
    ("agnews", 0, "Topic: World."),
    ("agnews", 1, "Subject: World."),
    ("agnews", 2, "This is about World."),
    ("agnews", 3, "It is about World."),
    ("trec", 0, "Description :"),
    ("trec", 1, "Q: Description :"),
    ("trec", 2, "Why Description ?"),
    ("trec", 3, "Answer: Description ."),
    ("subj", 0, "This is subjective ."),
    ("subj", 1, "It's all subjective ."),
    ("subj", 2, "It's subjective ."),
    ("subj", 3, "Is it subjective ?"),
    ("reviews", 1, "It was terrible ."),
    ("plots", 1, "It's all subjective ."),
]


@pytest.mark.parametrize(("name", "template", "filled"), FILLED)
def test_templates_read_as_in_the_paper(tokenizer, name, template, filled):
    def joined(method):
        (encoded,) = encode(TASKS[name], ["x"], tokenizer, template=template, method=method)
        return "".join(tokenizer.read(encoded.contexts[0] + encoded.continuations[0]))

    assert joined("direct") == f"x {filled}<eos>"
    assert joined("channel") == f"{filled} x<eos>"


WORDS = {
    "sst2": "terrible great",
    "sst5": "terrible bad okay good great",
    "agnews": "World Sports Business Technology",
    "trec": "Description Entity Expression Human Location Number",
    "subj": "subjective objective",
    "reviews": "terrible great",
    "plots": "subjective objective",
}


def test_label_words_are_the_papers():
    assert {name: " ".join(task.label_words) for name, task in TASKS.items()} == WORDS
    assert all(len(task.templates) == 4 for task in TASKS.values())
    assert {name for name, task in TASKS.items() if task.max_length == 256} == {"agnews", "subj"}
    assert {task.max_length for task in TASKS.values()} == {128, 256}


def test_a_shared_first_token_of_the_label_words_is_context(tokenizer):
    task = own_task(("Topic: %s .",), ("very bad", "very good", "very nice"))
    (encoded,) = encode(task, ["x"], tokenizer, template=0)
    contexts, continuations = read(tokenizer, encoded)
    assert contexts == [["x", " Topic", ":", " very"]] * 3
    assert continuations == [[w, " .", "<eos>"] for w in (" bad", " good", " nice")]


def test_the_first_difference_is_taken_over_all_labels(tokenizer):
    task = own_task(("%s",), ("very bad", "very good", "fine"))
    (encoded,) = encode(task, ["x"], tokenizer, template=0)
    contexts, continuations = read(tokenizer, encoded)
    assert contexts == [["x"]] * 3
    assert continuations == [
        [" very", " bad", "<eos>"],
        [" very", " good", "<eos>"],
        [" fine", "<eos>"],
    ]


def test_eos_distinguishes_a_template_from_a_longer_one(tokenizer):
    task = own_task(("It was %s",), ("good", "good indeed"))
    (encoded,) = encode(task, ["x"], tokenizer, template=0)
    contexts, continuations = read(tokenizer, encoded)
    assert contexts == [["x", " It", " was", " good"]] * 2
    assert continuations == [["<eos>"], [" indee", "d", "<eos>"]]


def test_percent_signs_in_a_template_are_text(tokenizer):
    task = own_task(("100% %s",), ("good", "bad"))
    (encoded,) = encode(task, ["x"], tokenizer, template=0, method="channel")
    assert read(tokenizer, encoded)[0] == [["100%", " good"], ["100%", " bad"]]


@pytest.mark.parametrize("method", ["direct", "channel"])
def test_only_the_end_of_the_text_is_cut(tokenizer, method):
    words = [f"w{i}" for i in range(300)]
    for name, kept in (("sst2", 112), ("subj", 240)):
        long, exact = encode(
            TASKS[name], [" ".join(words), " ".join(words[:kept])], tokenizer, method=method
        )
        assert long == exact
        whole = tokenizer.read(long.contexts[0] + long.continuations[0])
        assert [w.strip() for w in whole if w.strip().startswith("w") and w != " was"] == words[
            :kept
        ]
        assert whole[-1] == "<eos>"


@pytest.mark.parametrize("method", ["direct", "channel"])
def test_max_tokens_bounds_every_label_and_cuts_the_same_text(tokenizer, method):
    (encoded,) = encode(
        TASKS["sst2"], ["one two three four"], tokenizer, method=method, max_tokens=8
    )
    contexts, continuations = read(tokenizer, encoded)
    if method == "direct":  # "It was terrible ." and EOS are 6 of the 8
        assert contexts == [["one", " two", " It", " was"]] * 2
        assert continuations == [[" terri", "ble", " .", "<eos>"], [" great", " .", "<eos>"]]
    else:
        assert contexts == [["It", " was", " terri", "ble", " ."], ["It", " was", " great", " ."]]
        assert continuations == [[" one", " two", "<eos>"]] * 2


@pytest.mark.parametrize("method", ["direct", "channel"])
def test_a_text_keeps_at_least_one_token(tokenizer, method):
    (encoded,) = encode(
        TASKS["trec"], ["one two"], tokenizer, template=0, method=method, max_tokens=6
    )
    assert "one" in "".join(tokenizer.read(encoded.contexts[0] + encoded.continuations[0]))
    with pytest.raises(InputError, match=r"template=0.*prompt_length"):
        encode(TASKS["trec"], ["one two"], tokenizer, template=0, method=method, max_tokens=5)


def test_order_and_number_of_texts_are_kept(tokenizer):
    encoded = encode(TASKS["sst2"], ["one", "two", "three"], tokenizer)
    assert [tokenizer.read(e.contexts[0])[0] for e in encoded] == ["one", "two", "three"]
    assert encode(TASKS["sst2"], [], tokenizer) == []


@pytest.mark.parametrize(
    ("task", "texts", "options", "message"),
    [
        (TASKS["sst2"], ["x"], {"template": 4}, r"template=4: task sst2 has templates 0 to 3"),
        (TASKS["sst2"], ["x"], {"template": -1}, r"template=-1"),
        (own_task(("%s",), ("a", "b")), ["x"], {}, r"template=1: .* templates 0 to 0"),
        (TASKS["sst2"], ["x"], {"method": "noisy"}, r"method='noisy': .*direct, channel"),
        (own_task(("%s",), ("a", "b", "a")), ["x"], {"template": 0}, r"two label words"),
        (TASKS["sst2"], ["x", ""], {}, r"text 1 has no tokens"),
    ],
)
def test_a_fault_in_encoding_names_the_argument_or_text(tokenizer, task, texts, options, message):
    with pytest.raises(InputError, match=message) as caught:
        encode(task, texts, tokenizer, **options)
    assert "\n" not in str(caught.value)


PAIRS = {
    "Given: {text} Then: {text_b} ? %s": ["Given:", " a", " b", " Then", ":", " c", " ?", " good"],
    "{text_b} | {text} = %s": ["c", " |", " a", " b", " =", " good"],
    "{text}\n{text_b} %s": ["a", " b", "\n", "c", " good"],
    "({text}) %s": ["(", "a", " b", ")", " good"],
}


@pytest.mark.parametrize("template", PAIRS)
def test_a_template_says_where_the_texts_are(tokenizer, template):
    task = own_task((template,), ("good", "bad"))
    (encoded,) = encode(task, ["a b"], tokenizer, texts_b=["c"], template=0)
    contexts, continuations = read(tokenizer, encoded)
    wanted = PAIRS[template]
    assert "".join(contexts[0]) == "".join(wanted[:-1])
    assert contexts[0] == contexts[1]
    assert continuations == [[" good", "<eos>"], [" bad", "<eos>"]]


@pytest.mark.parametrize("name", TASKS)
def test_naming_the_usual_place_of_the_text_changes_nothing(tokenizer, name):
    task, texts = TASKS[name], ["a dull film", " and  spaces "]
    for method, form in (("direct", "{{text}} {}"), ("channel", "{} {{text}}")):
        templates = tuple(form.format(each.strip()) for each in task.templates)
        explicit = Task(task.name, task.labels, templates, task.label_words, task.max_length)
        for template in range(len(templates)):
            options = {"template": template, "method": method}
            usual = encode(task, texts, tokenizer, **options)
            assert encode(explicit, texts, tokenizer, **options) == usual


def test_a_channel_template_ends_with_the_text_that_is_scored(tokenizer):
    task = own_task(("{text} is %s since {text_b}",), ("good", "bad"))
    (encoded,) = encode(task, ["a b"], tokenizer, texts_b=["c"], template=0, method="channel")
    contexts, continuations = read(tokenizer, encoded)
    assert contexts == [["a", " b", " is", w, " since"] for w in (" good", " bad")]
    assert continuations == [[" c", "<eos>"]] * 2


@pytest.mark.parametrize(
    ("template", "method", "message"),
    [
        ("%s {text}", "direct", "has the label word before a text"),
        ("{text} %s {text_b}", "direct", "has the label word before a text"),
        ("{text} %s", "channel", "does not end with a text"),
        ("{text} {text} %s", "direct", "give it {text} once"),
        ("{text_b} %s", "direct", "give it {text} once"),
    ],
)
def test_a_template_that_does_not_fit_the_method_is_refused(tokenizer, template, method, message):
    task = own_task((template,), ("good", "bad"))
    with pytest.raises(InputError, match=re.escape(f"template=0: {message}")):
        encode(task, ["a"], tokenizer, texts_b=["b"], template=0, method=method)


def test_a_template_for_pairs_needs_pairs(tokenizer):
    task = own_task(("{text} {text_b} %s",), ("good", "bad"))
    with pytest.raises(InputError, match=r"has \{text_b\}, and the examples .* are no pairs"):
        encode(task, ["a"], tokenizer, template=0)


@pytest.mark.parametrize(("truncate", "kept"), [("tail", "w0 w1"), ("head", " w3 w4")])
def test_either_end_of_a_text_is_cut(tokenizer, truncate, kept):
    task = own_task(("%s",), ("good", "bad"))
    options = {"template": 0, "max_tokens": 4}
    (encoded,) = encode(task, ["w0 w1 w2 w3 w4"], tokenizer, truncate=truncate, **options)
    assert "".join(tokenizer.read(encoded.contexts[0])) == kept
    with pytest.raises(InputError, match="truncate='middle': choose one of tail, head"):
        encode(task, ["w0"], tokenizer, truncate="middle", **options)


@pytest.mark.parametrize(
    ("first", "second", "kept"), [(9, 1, (5, 1)), (1, 9, (1, 5)), (9, 9, (3, 3)), (2, 4, (2, 4))]
)
def test_of_a_pair_the_longer_text_is_cut(tokenizer, first, second, kept):
    task = own_task(("{text} | {text_b} %s",), ("good", "bad"))
    texts, texts_b = [" ".join(["a"] * first)], [" ".join(["b"] * second)]
    options = {"texts_b": texts_b, "template": 0, "max_tokens": 9}
    (encoded,) = encode(task, texts, tokenizer, **options)
    found = "".join(tokenizer.read(encoded.contexts[0]))
    assert (found.count("a"), found.count("b")) == kept
    assert count_truncated(task, texts, tokenizer, **options) == (kept != (first, second))


def test_texts_that_are_cut_are_counted(tokenizer):
    texts = [" ".join(["w"] * length) for length in (1, 2, 3, 4, 5)]
    for method in ("direct", "channel"):
        options = {"method": method, "max_tokens": 8}  # "It was terrible ." and EOS are 6
        assert count_truncated(TASKS["sst2"], texts, tokenizer, **options) == 3
        assert count_truncated(TASKS["sst2"], texts, tokenizer, method=method) == 0


def test_labels_may_have_several_words_which_are_scored_each(tokenizer):
    several = Task("own", ("bad", "good"), ("It was %s .",), (("terrible", "bad"), "great"))
    single = own_task(("It was %s .",), ("terrible", "bad", "great"))
    assert several.words == single.words
    assert several.word_labels == (0, 0, 1)
    found = encode(several, ["a text"], tokenizer, template=0)
    assert found == encode(single, ["a text"], tokenizer, template=0)
    with pytest.raises(InputError, match=r"^method='channel': task own has several words"):
        encode(several, ["a text"], tokenizer, template=0, method="channel")
    twice = Task("own", ("bad", "good"), ("It was %s .",), (("bad", "great"), "great"))
    with pytest.raises(InputError, match=r"two label words of task own give the same tokens"):
        encode(twice, ["a text"], tokenizer, template=0)


def test_a_task_of_a_single_label_word_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"^task='own': has fewer than two label words"):
        encode(own_task(("It was %s .",), ("great",)), ["a text"], tokenizer, template=0)
