"""The library's face on a small model, against PyTorch, NumPy and its own promises."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wayward_jax as wj
from tests.helpers import toy_models
from tests.helpers.gradients import with_gradient
from wayward_jax.constraints import Constraint
from wayward_jax.segments import example_order
from wayward_jax.sharding import make_mesh, place_params
from wayward_jax.targets import load_texts
from wayward_jax.tasks import TaskData

pytestmark = pytest.mark.usefixtures("one_shape")


@pytest.fixture(scope="module")
def task():
    return toy_models.toy_data()


def tune(model, task, target=toy_models.TARGET, **settings):
    settings = {"steps": 4, "learning_rate": 0.1, "progress": False, "n_eval": 20, **settings}
    return wj.tune(model, task, target, **settings)


@pytest.fixture(scope="module")
def record(model, task):
    return tune(model, task, gamma=1.0)


def test_one_target_gives_one_record_that_says_all_that_was_asked(model, record):
    assert record.run.target_text == toy_models.TARGET
    assert (record.run.gamma, record.run.steps, record.run.model) == (1.0, 4, model.name)
    assert record.run.model_digest == model.digest
    assert record.prompt.shape == (4, toy_models.WIDTH)
    assert record.text == model.tokenizer.decode(record.token_ids)
    assert 0 <= record.accuracy <= 1
    assert record.n_eval == 20


@pytest.fixture(scope="module")
def grid(model, task):
    """All combinations of two targets and none, two gammas, learning rates and seeds."""
    targets = ["w3 w1", "w4 w2", None]
    rates, seeds = [0.0, 0.1], range(2)
    settings = {"gammas": [0.1, 1.0], "learning_rate": rates, "seeds": seeds, "prompt_length": 2}
    return tune(model, task, None, targets=targets, **settings)


@pytest.mark.slow
def test_lists_give_a_record_for_every_combination_and_p_star_once_for_all_gammas(grid):
    found = [(r.run.target_name, r.run.gamma, r.run.learning_rate, r.run.seed) for r in grid]
    others = (0.0, 0.1), range(2)
    assert found[:16] == list(itertools.product(("w3 w1", "w4 w2"), (0.1, 1.0), *others))
    own = [(name, rate, seed) for name, _, rate, seed in found[16:]]
    assert own == list(itertools.product(["p_star"], *others))
    assert all((r.prompt_f1 is None) == (r.run.target_name == "p_star") for r in grid)
    frame = grid.to_frame()
    assert frame["id"].tolist() == [r.run.id for r in grid]
    assert frame["accuracy"].tolist() == [r.accuracy for r in grid]


@pytest.mark.slow
def test_learning_rates_are_each_runs_own(grid):
    for record in grid[:16]:
        assert (record.distance > 0) == (record.run.learning_rate > 0)
    assert {r.run.learning_rate for r in grid[:16]} == {0.0, 0.1}


def after_bos(theirs, bos, prompt):
    """A prompt with the published model's embeddings of BOS before it."""
    torch = pytest.importorskip("torch")
    before = theirs.get_input_embeddings()(torch.tensor(bos, dtype=torch.long))
    return torch.cat([before.detach(), prompt])


@pytest.mark.slow
@pytest.mark.parametrize("bos", [(), (5,), (9, 2)])
def test_the_loss_and_its_gradient_are_those_of_pytorch(model, theirs, task, bos):
    torch = pytest.importorskip("torch")
    model = dataclasses.replace(model, bos_ids=bos)
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(2, 3, toy_models.WIDTH)).astype(np.float32)
    targets, gammas = rng.integers(1, 80, (2, 3)), np.float32([0.1, 2.0])
    chosen = [[0, 7, 3], [12, 5]]
    packed = wj.pack(model, task, chosen, prompt_length=3)

    def loss(prompts):
        return wj.losses(model, prompts, packed, targets, gammas)

    found, gradients = with_gradient(loss)(prompts)
    encoded = wj.api.tasks.encode(task.task, task.train.texts, model.tokenizer, template=0)
    for r, own in enumerate(chosen):
        prompt = torch.tensor(prompts[r], requires_grad=True)
        labels = task.train.labels
        inputs = after_bos(theirs, bos, prompt)
        nll = [
            toy_models.published_nll(
                theirs, inputs, encoded[i].contexts[labels[i]], encoded[i].continuations[labels[i]]
            )
            for i in own
        ]
        target = theirs.get_input_embeddings()(torch.tensor(targets[r]))
        distance = (prompt - target).square().sum(1).mean()
        expected = torch.stack(nll).mean() + float(gammas[r]) * distance
        expected.backward()
        np.testing.assert_allclose(found[r], expected.item(), rtol=1e-4)
        error = np.abs(gradients[r] - prompt.grad.numpy()).max()
        assert error < 1e-4 * prompt.grad.abs().max()


SEVERAL = (("terrible", "w20"), ("great", "w21", "w22 w23"))
"""Label words of the toy task, some of which begin alike and some of which are two tokens."""


@pytest.mark.slow
def test_with_several_label_words_the_loss_sums_their_probabilities(model, theirs, task):
    """The loss, its gradient, and evaluation, against PyTorch: `-log sum_w exp(-nll_w)`."""
    torch = pytest.importorskip("torch")
    words = [word for own in SEVERAL for word in own]
    of_label = [[0, 1], [2, 3, 4]]
    wide = dataclasses.replace(task, task=dataclasses.replace(task.task, label_words=SEVERAL))
    single = dataclasses.replace(task.task, labels=tuple(words), label_words=tuple(words))
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(2, 3, toy_models.WIDTH)).astype(np.float32)
    chosen = [[0, 7, 3, 1], [12, 5]]
    packed = wj.pack(model, wide, chosen, prompt_length=3)

    def label_losses(prompt, encoded):
        nll = torch.stack(
            [toy_models.published_nll(theirs, prompt, *each) for each in zip(*encoded, strict=True)]
        )
        return torch.stack([-torch.logsumexp(-nll[own], dim=0) for own in of_label])

    def loss(prompts):
        return wj.losses(model, prompts, packed, np.zeros((2, 3), int), 0.0)

    found, gradients = with_gradient(loss)(prompts)
    train = wj.api.tasks.encode(single, task.train.texts, model.tokenizer, template=0)
    for r, own in enumerate(chosen):
        prompt = torch.tensor(prompts[r], requires_grad=True)
        losses = [label_losses(prompt, train[i])[task.train.labels[i]] for i in own]
        expected = torch.stack(losses).mean()
        expected.backward()
        np.testing.assert_allclose(found[r], expected.item(), rtol=1e-4)
        error = np.abs(gradients[r] - prompt.grad.numpy()).max()
        assert error < 1e-4 * prompt.grad.abs().max()

    test = wj.api.tasks.encode(single, task.test.texts[:6], model.tokenizer, template=0)
    some = dataclasses.replace(wide, test=task.test.take(range(6)))
    (evaluation,) = wj.evaluate(model, [prompts[0]], some)
    with torch.no_grad():
        expected = torch.stack([label_losses(torch.tensor(prompts[0]), each) for each in test])
    np.testing.assert_allclose(evaluation.nll, expected.numpy(), rtol=1e-4)
    record = tune(model, wide, gamma=1.0)
    assert np.isfinite(record.task_loss)


@pytest.mark.slow
def test_words_of_a_label_that_diverges_leave_the_other_runs_alone(model, task):
    """Its own loss alone is not a number."""
    wide = dataclasses.replace(task, task=dataclasses.replace(task.task, label_words=SEVERAL))
    packed = wj.pack(model, wide, [[0, 7, 3], [12, 5]], prompt_length=3)
    prompts = np.random.default_rng(0).normal(size=(2, 3, toy_models.WIDTH)).astype(np.float32)
    broken = prompts.copy()
    broken[1, 0, 0] = np.nan

    def loss(prompts):
        return wj.losses(model, prompts, packed, np.zeros((2, 3), int), 0.0)

    of_first = with_gradient(loss, total=lambda losses: losses[0])
    (whole, gradients), (found, left) = of_first(prompts), of_first(broken)
    assert found[0] == whole[0]
    assert np.isnan(found[1])
    np.testing.assert_array_equal(left[0], gradients[0])


@pytest.mark.slow
def test_an_optimizer_of_ones_own_takes_the_steps_that_pytorchs_takes(model, theirs, task):
    """Also behind BOS."""
    torch = pytest.importorskip("torch")
    bos = (5,)
    model = dataclasses.replace(model, bos_ids=bos)
    record = tune(
        model,
        task,
        gamma=0.5,
        optimizer=lambda steps: optax.sgd(0.2),
        learning_rate=None,
        steps=3,
        batch_size=8,
    )
    encoded = wj.api.tasks.encode(task.task, task.train.texts, model.tokenizer, template=0)
    target = theirs.get_input_embeddings()(torch.tensor(record.run.target_ids))
    prompt = torch.nn.Parameter(target.clone())
    sgd = torch.optim.SGD([prompt], lr=0.2)
    order = example_order(len(encoded), 3 * 8, record.run.seed).reshape(3, 8)
    for batch in order:
        labels = task.train.labels
        inputs = after_bos(theirs, bos, prompt)
        nll = [
            toy_models.published_nll(
                theirs, inputs, encoded[i].contexts[labels[i]], encoded[i].continuations[labels[i]]
            )
            for i in batch
        ]
        sgd.zero_grad()
        distance = (prompt - target).square().sum(1).mean()
        (torch.stack(nll).mean() + 0.5 * distance).backward()
        sgd.step()
    moved = np.abs(record.prompt - target.numpy()).max()
    assert np.abs(record.prompt - prompt.detach().numpy()).max() < 1e-3 * moved
    assert record.run.optimizer == "custom"
    assert record.run.learning_rate == 1.0


@dataclasses.dataclass(frozen=True)
class Ball(Constraint):
    """Keeps every vector within a radius of its target's embedding, with a counter of steps."""

    radius: float

    def init(self, target, gamma, margin, steps):
        return {"projections": jnp.zeros((), jnp.int32)}

    def project(self, state, prompt, target, remaining):
        away = prompt - target.embeddings
        length = jnp.linalg.norm(away, axis=-1, keepdims=True)
        inside = target.embeddings + away * jnp.minimum(1, self.radius / jnp.maximum(length, 1e-9))
        return inside, {"projections": state["projections"] + 1}


@pytest.mark.slow
@pytest.mark.parametrize("constraint", ["penalty", "cell", "dual"])
def test_bos_stays_as_it_is_and_is_no_part_of_the_prompt(model, task, constraint):
    """Also under weight decay, which moves vectors without a gradient, and in long populations."""
    settings = {"constraint": constraint, "weight_decay": 0.5, "steps": 6}
    with_bos = dataclasses.replace(model, bos_ids=(5,))
    record, longer = tune(
        with_bos, task, None, targets={"short": "w7 w8", "long": toy_models.TARGET}, **settings
    )
    for each, name, length in ((record, "short", 2), (longer, "long", 4)):
        assert each.run.target_name == name
        assert each.prompt.shape == (length, toy_models.WIDTH)
        assert len(each.token_ids) == length
        assert each.run.bos_ids == (5,)
    by_hand = dataclasses.replace(with_bos, bos_ids=())
    table = np.asarray(model.embedding_table())
    (expected,) = wj.evaluate(by_hand, [np.concatenate([table[[5]], longer.prompt])], task)
    (found,) = wj.evaluate(with_bos, [longer.prompt], task)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-4)
    assert dataclasses.replace(longer.run, bos_ids=()).id != longer.run.id


@pytest.mark.slow
def test_a_constraint_of_ones_own_holds_at_the_end(model, task):
    near = tune(model, task, constraint=Ball(0.25), learning_rate=0.3)
    far = tune(model, task, gamma=0.0, learning_rate=0.3)
    target = np.asarray(model.embedding_table())[list(near.run.target_ids)]
    lengths = [np.linalg.norm(record.prompt - target, axis=1) for record in (near, far)]
    np.testing.assert_array_less(lengths[0], 0.2501)
    assert lengths[1].max() > 0.3
    assert near.run.constraint == "Ball(radius=0.25)"
    assert near.run.id != dataclasses.replace(near.run, constraint=str(Ball(100.0))).id


@pytest.mark.slow
def test_the_best_prompt_on_dev_is_kept_and_evaluated(model, task):
    record = tune(model, task, None, prompt_length=4, keep="best", steps=12, learning_rate=2.0)
    best = max(record.curve, key=lambda point: (point.dev_accuracy, point.step))
    assert record.kept_step == best.step
    last = tune(model, task, None, prompt_length=4, steps=12, learning_rate=2.0)
    assert last.kept_step == 12
    assert last.curve == record.curve
    assert (last.prompt == record.prompt).all() == (record.kept_step == 12)
    (found,) = wj.evaluate(model, [record.prompt], task, n_eval=20)
    assert found.accuracy == record.accuracy
    np.testing.assert_array_equal(found.predictions, found.nll.argmin(axis=1))


@pytest.mark.slow
def test_texts_are_cut_at_the_end_that_is_asked_for(model, task):
    """Against texts that are cut by hand: each word is a token, and texts have two at most."""
    short = dataclasses.replace(task.task, max_length=18)
    cut = {
        "head": lambda words: words[-2:],
        "tail": lambda words: words[:2],
    }
    by_end = {}
    for end, keep in cut.items():
        by_hand = [
            dataclasses.replace(each, texts=tuple(" ".join(keep(t.split())) for t in each.texts))
            for each in (task.train, task.dev, task.test)
        ]
        cut_by_hand = TaskData(task.task, *by_hand)
        long = dataclasses.replace(task, task=short)
        expected = tune(model, cut_by_hand)
        found = tune(model, long, truncate=end)
        np.testing.assert_array_equal(found.prompt, expected.prompt)
        (evaluation,) = wj.evaluate(model, [found.prompt], long, n_eval=20, truncate=end)
        assert evaluation.accuracy == found.accuracy == expected.accuracy
        by_end[end] = evaluation.nll
    assert (by_end["head"] != by_end["tail"]).any()


@pytest.mark.slow
def test_a_start_can_be_an_array_or_a_text(model, task):
    given = np.random.default_rng(0).normal(size=(4, toy_models.WIDTH)).astype(np.float32)
    kept = tune(model, task, init=given, learning_rate=0.0)
    np.testing.assert_array_equal(kept.prompt, given)
    text = tune(model, task, init="w5 w6 w7 w8", learning_rate=0.0)
    assert text.text == "w5 w6 w7 w8"
    assert kept.run.id != text.run.id
    again = tune(model, task, init=given.copy(), learning_rate=0.0)
    assert again.run.id == kept.run.id


def test_a_callback_is_told_of_every_step(model, task):
    told = []
    record = tune(model, task, callback=told.append)
    assert told[-1].step == 4
    assert sum(len(metrics.task_loss) for metrics in told) == 4
    assert told[0].run_ids == (record.id,)


def test_any_prompt_is_read_under_every_metric(model):
    prompt = np.random.default_rng(0).normal(size=(3, toy_models.WIDTH))
    readings = wj.read(model, prompt, k=5, target="w3 w1 w4")
    table = np.float64(model.embedding_table())[: len(toy_models.WORDS)]
    far = np.square(np.float32(prompt)[:, None] - table).sum(axis=2)
    np.testing.assert_array_equal(readings["euclidean"].ids, far.argsort(axis=1)[:, :5])
    dots = prompt @ table.T
    np.testing.assert_array_equal(readings["dot"].ids, (-dots).argsort(axis=1)[:, :5])
    cosines = dots / np.linalg.norm(table, axis=1)
    np.testing.assert_array_equal(readings["cosine"].ids, (-cosines).argsort(axis=1)[:, :5])
    ordered = np.sort(far, axis=1)
    np.testing.assert_allclose(
        readings["euclidean"].margins, ordered[:, 1] - ordered[:, 0], rtol=1e-3
    )
    assert readings["euclidean"].token_f1 is not None


def test_built_in_targets_load_without_a_tokenizer():
    texts = wj.load_targets("instructions:3")
    assert list(texts) == ["instructions/01", "instructions/02", "instructions/03"]
    assert texts == load_texts("instructions:3", task=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"constraint": "wall"}, "constraint='wall': choose one of penalty"),
        ({"keep": "first"}, "keep='first': give one of last, best"),
        ({"optimizer": "magic"}, "optimizer='magic': give one of adamw"),
        ({"warmup": 4}, "warmup=4: give fewer than the steps=4"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "weight_decay=0.1: only optimizer=adamw"),
        ({"targets": ["w1"]}, "give either target or targets"),
        ({"target": None, "targets": "w1"}, "targets='w1': give a list"),
        ({"target": None}, "prompt_length: give it"),
        ({"init": np.zeros((2, 5))}, r"prompt=\(2, 5\): give an array"),
        ({"init": np.full((4, 32), np.nan)}, "not finite"),
        ({"init": np.zeros((3, 32))}, "has 3 vectors where the prompt has 4"),
        ({"method": "indirect"}, "method='indirect': give one of"),
        ({"template": 5}, "template=5"),
        ({"gammas": [-1.0]}, "gamma='-1.0': give finite numbers from 0"),
        ({"steps": 0}, "steps='0': give"),
        ({"learning_rate": float("nan")}, "learning_rate='nan': give"),
        ({"prompt_length": 9}, "prompt_length=9"),
    ],
    ids=str,
)
def test_bad_arguments_get_one_line_that_names_them(model, task, arguments, said):
    with pytest.raises(wj.InputError, match=said) as error:
        tune(model, task, **arguments)
    assert "--" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_a_target_without_a_cell_is_refused_where_cells_matter(model, task):
    table = np.array(model.embedding_table())
    first, second = model.tokenizer.encode("w1 w5")
    table[second] = table[first]
    params = {"params": {**model.params["params"], "embed": {"embedding": jnp.asarray(table)}}}
    twins = dataclasses.replace(
        model, params=place_params(params, make_mesh(), model.family.partition_spec)
    )
    for constraint in ("cell", "dual"):
        with pytest.raises(wj.InputError, match=r"targets='text': nothing reads as 'w5'"):
            tune(twins, task, "w3 w5", constraint=constraint)
