"""Recipes as objects, names and files; the paper's recipe step by step."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest
import torch
from inputs import samples_of, trace
from torch import nn

import secateur
from secateur import (
    ADMM,
    RECIPES,
    AdamCalibration,
    BiasCorrection,
    ChannelAlignment,
    OptionError,
    Recipe,
    Uniform,
    WeightCorrection,
)
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare
from secateur.frontends.torch.graph import with_parameters
from secateur.pruning import run
from secateur.pruning.alignment import pairs_to_align
from secateur.pruning.allocations.sensitivity import Sensitivity
from secateur.pruning.allocations.uniform import FittedUniform
from secateur.pruning.recipe import choose_recipe, name_of
from secateur.pruning.reconstruction import BlockReconstruction
from secateur.pruning.targets import MaxBytes, MaxMacs, Sparsity

QUICK = AdamCalibration(
    base=BiasCorrection(base=WeightCorrection()), iterations=3, learning_rate=1e-3, batch=64
)


class Pairs(nn.Module):
    """Convolutions after each other: with BatchNorm between, plainly, and with something else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 16, 1)
        self.c = nn.Conv2d(16, 6, 3)
        self.padded = nn.Conv2d(6, 6, 3, padding=1)
        self.d = nn.Conv2d(6, 6, 1)
        self.read_twice = nn.Conv2d(6, 6, 1)
        self.e, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(self.b(self.norm(self.a(x))))
        x = self.read_twice(self.d(self.padded(x)).relu())
        return self.head((self.e(x) + x).mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Pairs().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for tensor in (network.norm.weight, network.norm.bias, network.norm.running_mean):
        tensor.copy_(torch.randn(8, generator=generator) * 3)
    return network


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(60, 3, 9, 9, generator=torch.Generator().manual_seed(2))


# channel alignment


def test_pairs_are_found_where_nothing_is_between(network, images) -> None:
    pairs = pairs_to_align(trace(network, images[:2]))
    assert [(a.name, b.name) for a, b in pairs] == [("a", "b"), ("b", "c"), ("padded", "d")]


def test_aligning_changes_no_output_and_equalises_ranges(network, images) -> None:
    graph = trace(network, images[:2])
    found = ChannelAlignment(quantile=0.0).align(graph, samples_of(graph, images), chunk=7)
    aligned = with_parameters(network, found.changes)
    torch.testing.assert_close(aligned(images), network(images), rtol=1e-4, atol=1e-4)
    between = aligned.norm(aligned.a(images))  # images, chan, height, width
    low, high = between.flatten(2).amin(2), between.flatten(2).amax(2)
    middle = (low.median(0).values + high.median(0).values) / 2
    width = high.median(0).values - low.median(0).values
    assert middle.abs().max() < 0.05 * width.max()
    assert width.max() / width.min() < 1.2
    before = network.norm(network.a(images)).flatten(2)
    spread = (before.amax(2) - before.amin(2)).median(0).values
    assert spread.max() / spread.min() > 3
    assert all(len(of.bn_scale) for of in graph.changed(found.changes).layers[:1])


def test_the_aligned_graph_has_the_aligned_slopes(network, images) -> None:
    graph = trace(network, images[:2])
    changes = ChannelAlignment().align(graph, samples_of(graph, images), chunk=60).changes
    layer, old = graph.changed(changes).layers[0], graph.layers[0]
    expected = old.bn_scale * changes["norm.weight"] / network.norm.weight
    torch.testing.assert_close(layer.bn_scale, expected)


def test_a_scale_stays_within_its_limits(network, images) -> None:
    graph = trace(network, images[:2])
    found = ChannelAlignment(limits=(0.9, 1.1)).align(graph, samples_of(graph, images), chunk=60)
    ratio = network.norm.weight / found.changes["norm.weight"]
    assert ratio.min() >= 0.9 - 1e-6
    assert ratio.max() <= 1.1 + 1e-6


def test_without_pairs_nothing_is_aligned(images) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    graph = trace(network, images[:2])
    assert not ChannelAlignment().align(graph, samples_of(graph, images), chunk=9).changes


# the paper's recipe


def test_the_paper_goes_step_by_step(network, images) -> None:
    recipe = dataclasses.replace(RECIPES["paper"], method=QUICK)
    result = secateur.prune(network, images, sparsity=0.5, recipe=recipe)
    report = result.report
    names = ["magnitude", "channel-alignment", "weight-correction", "bias-correction"]
    assert [step.name for step in report.steps] == [*names, "adam-calibration"]
    assert report.sparsity == pytest.approx(0.5, abs=0.002)
    assert "channels aligned between a and b" in report.notes
    dense = predict(network, images)
    for step in report.steps:
        after = result.after(step.name)
        zeros = sum(int((after.get_submodule(x.name).weight == 0).sum()) for x in report.layers)
        assert zeros == sum(layer.zeros for layer in report.layers)
        found = compare(predict(after, images), reference=dense)
        assert found.kl == pytest.approx(step.calibration.kl, rel=1e-4, abs=1e-7)
    last = result.after("adam-calibration")
    assert all(
        torch.equal(a, b) for a, b in zip(last.parameters(), result.model.parameters(), strict=True)
    )
    kl = {step.name: step.calibration.kl for step in report.steps}
    assert kl["adam-calibration"] < kl["bias-correction"] < kl["weight-correction"]
    assert report.calibration.kl == pytest.approx(kl["adam-calibration"], rel=1e-4)
    with pytest.raises(OptionError, match="no step 'adam', expected one of: magnitude, channel"):
        result.after("adam")


def test_the_first_step_is_plain_magnitude_pruning(network, images) -> None:
    recipe = dataclasses.replace(RECIPES["paper"], method=QUICK)
    result = secateur.prune(network, images, sparsity=0.5, recipe=recipe)
    plain = secateur.prune(
        network, images, sparsity=0.5, method="magnitude", allocation="normalized-magnitude"
    ).model
    first = result.after("magnitude").state_dict()
    assert all(torch.equal(first[key], value) for key, value in plain.state_dict().items())


def test_each_step_can_be_switched_off(network, images) -> None:
    off = dataclasses.replace(RECIPES["paper"], method=BiasCorrection(), alignment=None)
    report = secateur.prune(network, images, sparsity=0.5, recipe=off).report
    assert [step.name for step in report.steps] == ["magnitude", "bias-correction"]
    assert report.requested["recipe"]["method"]["base"] == {"name": "magnitude"}
    assert not secateur.prune(network, images, sparsity=0.5).report.steps


def test_walks_start_from_the_weights_before(network, images) -> None:
    """The weights that go on the way do not come back; without training nothing else changes."""
    plain = Recipe(method=secateur.Magnitude(), allocation=Uniform())
    straight = secateur.prune(network, images, sparsity=0.6, recipe=plain)
    gradual = dataclasses.replace(plain, schedule=(0.3, 0.0))
    on_the_way = secateur.prune(network, images, sparsity=0.6, recipe=gradual)
    for key, value in straight.model.state_dict().items():
        assert torch.equal(value, on_the_way.model.state_dict()[key])
    quick = Recipe(method=QUICK, inputs="dense", schedule=(0.3, 0.0))
    two = secateur.prune(network, images, sparsity=0.6, recipe=quick).model
    one = secateur.prune(
        network, images, sparsity=0.6, recipe=dataclasses.replace(quick, schedule=(0.0,))
    ).model
    half = secateur.prune(
        network, images, sparsity=0.3, recipe=dataclasses.replace(quick, schedule=(0.0,))
    ).model
    assert not torch.equal(one.b.weight, two.b.weight)
    assert not ((half.b.weight == 0) & (two.b.weight != 0)).any()


def test_a_walk_on_the_way_is_rough_and_finds_out_what_the_next_one_needs(
    network, images, monkeypatch
) -> None:
    """Each layer is measured in one visit of its own, and solved twice, the last time exactly."""
    solved: list[float] = []

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Told(secateur.ADMM):
        def solve(self, problem, pattern, kept):
            solved.append(self.settled)
            return super().solve(problem, pattern, kept)

    walks: list[tuple[int, int]] = []
    walk = run.walk

    def walking(graph, samples, *arguments, **settings):
        walks.append((len(samples), settings["sampling"].per_column))
        return walk(graph, samples, *arguments, **settings)

    monkeypatch.setattr(run, "walk", walking)
    monkeypatch.setattr(run, "_ROUGH_SAMPLES", len(images) // 2)
    fits: list[int] = []
    fit = Sensitivity.fit
    monkeypatch.setattr(Sensitivity, "fit", lambda self, of: fits.append(1) or fit(self, of))
    seen: list[tuple[int, int]] = []
    result = secateur.prune(
        network,
        images,
        sparsity=0.6,
        recipe=Recipe(method=Told(settled=1e-3), schedule=(0.2, 0.0)),
        progress=lambda done, total, name: seen.append((done, total)),
    )
    layers = len(result.report.layers)
    assert solved == [1e-2] * layers + [1e-3] * layers
    assert walks == [(len(images) // 2, 8), (len(images), 16)]
    assert len(fits) == 1
    assert seen == [(at, 3 * layers) for at in range(1, 3 * layers + 1)]
    assert result.report.sparsity == pytest.approx(0.6, abs=1e-3)


def test_a_walk_after_which_blocks_are_trained_takes_all_samples(
    network, images, monkeypatch
) -> None:
    walks: list[int] = []
    walk = run.walk
    monkeypatch.setattr(
        run, "walk", lambda graph, samples, *of, **by: walks.append(len(samples))
        or walk(graph, samples, *of, **by),
    )  # fmt: skip
    monkeypatch.setattr(run, "_ROUGH_SAMPLES", len(images) // 2)
    trained = BlockReconstruction(steps=1, held_back=2)
    for first in (0.3, 0.5):
        secateur.prune(
            network,
            images,
            sparsity=0.6,
            recipe=Recipe(schedule=(0.2, 0.0), reconstruction=trained, reconstruction_from=first),
            progress=False,
        )
    assert walks == [len(images), len(images), len(images) // 2, len(images)]


def test_layers_calibrated_side_by_side_are_as_those_calibrated_alone(network, images) -> None:
    recipe = Recipe(method=QUICK, inputs="dense", allocation=Uniform())
    together = secateur.prune(network, images, sparsity=0.5, recipe=recipe)
    again = secateur.prune(network, images, sparsity=0.5, recipe=recipe)
    for key, value in together.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key])
    order = [layer.name for layer in together.report.layers]
    assert order == [layer.name for layer in secateur.inspect(network, (3, 9, 9)).layers[1:]]
    before = torch.get_num_threads()
    secateur.prune(network, images, sparsity=0.5, recipe=recipe)
    assert torch.get_num_threads() == before


def test_an_error_in_a_worker_names_the_layer(network, images) -> None:
    @dataclasses.dataclass(frozen=True)
    class Failing:
        patches: int = 10

        def solve(self, problem, pattern, kept):
            raise secateur.NumericalError("it cannot be")

    with pytest.raises(secateur.NumericalError, match="layer b: it cannot be"):
        secateur.prune(network, images, sparsity=0.5, method=Failing(), inputs="dense")


# recipes as files


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_a_file(name, tmp_path) -> None:
    RECIPES[name].save(tmp_path / "recipe.toml")
    assert Recipe.load(tmp_path / "recipe.toml") == RECIPES[name]
    assert choose_recipe(tmp_path / "recipe.toml") == choose_recipe(name)
    with pytest.raises(secateur.OutputError, match="exists"):
        RECIPES[name].save(tmp_path / "recipe.toml")


def test_a_file_says_only_what_differs(tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'allocation = "uniform"\nschedule = [0.2, 0]\n[method]\nname = "bias-correction"\n'
        '[method.base]\nname = "admm"\ndamping = 1\n[alignment]\n'
    )
    assert Recipe.load(path) == Recipe(
        allocation=Uniform(),
        schedule=(0.2, 0.0),
        method=BiasCorrection(base=ADMM(damping=1.0)),
        alignment=ChannelAlignment(),
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("metod = 'admm'", "there is no setting 'metod', expected .*: did you mean method?"),
        ("method = 'adm'", "method: name is 'adm', expected one of .*did you mean admm"),
        ("[method]\nname='admm'\ndampin=1.0", "method: there is no setting 'dampin'.*damping"),
        ("[alignment]\nquantil=0", "alignment: there is no setting 'quantil'.*mean quantile"),
        ("[method]\nname='admm'\nsteps=1.5", "method: steps: expected a whole number, got a dec"),
        ("[method]\nname='admm'\ndamping='x'", "damping: expected a decimal number, got a text"),
        ("[method]\nname='admm'\ndamping=true", "damping: expected .*, got true or false"),
        ("[method]\ndamping=1.0", "expected a name or a table with a name"),
        ("method = 3", "method: expected a name or a table with a name, one of .*, got 3"),
        ("inputs = 'both'", "inputs: expected one of 'pruned', 'dense', got 'both'"),
        ("inputs = 1", "inputs: expected a text, got a whole number"),
        ("inputs = 1979-05-27", "inputs: expected a text, got a date"),
        ("schedule = [0.1]", "schedule is .0.1., expected falling numbers"),
        ("schedule = [0.1, 0.2, 0.0]", "expected falling numbers"),
        ("schedule = 0.1", "schedule: expected a list, got a decimal number"),
        ("schedule_from = 1" + 400 * "0", "schedule_from: number out of range"),
        ("alignment = true", "alignment: expected a table or none, got true or false"),
        ("[alignment]\nlimits=['a', 1]", r"alignment\.limits\[0\]: expected a decimal number"),
        ("[alignment]\nlimits=[1]", r"alignment\.limits: expected a list of length 2, got 1"),
        ("method" + 9000 * ".base" + " = 1", r"recipe\.toml"),
        ("method = ", "cannot be read as a recipe"),
    ],
)
def test_mistakes_in_a_file_are_named(text, says, tmp_path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=says):
        Recipe.load(path)


def test_mistakes_in_a_name_are_named(tmp_path) -> None:
    with pytest.raises(OptionError, match=r"recipe is 'papper', expected .*did you mean paper"):
        choose_recipe("papper")
    with pytest.raises(OptionError, match=r"cannot be read as a recipe: .*No such file"):
        choose_recipe(tmp_path / "absent.toml")


def test_settings_given_replace_the_recipes() -> None:
    chosen = choose_recipe("paper", method="admm", inputs="pruned", pattern=None)
    assert chosen == dataclasses.replace(RECIPES["paper"], method=ADMM(), inputs="pruned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gentle(ADMM):
    """Has a setting that is None at first."""

    limit: float | None = None


def test_settings_of_a_method_that_are_none_are_left_out_of_the_file(tmp_path) -> None:
    Recipe(method=Gentle()).save(tmp_path / "recipe.toml")
    assert "limit" not in tomllib.loads((tmp_path / "recipe.toml").read_text())["method"]


def test_saved_recipes_are_plain_toml(tmp_path) -> None:
    RECIPES["paper"].save(tmp_path / "recipe.toml")
    held = tomllib.loads((tmp_path / "recipe.toml").read_text())
    assert held["method"]["name"] == "adam-calibration"
    assert held["method"]["base"]["base"]["base"] == {"name": "magnitude"}
    assert held["schedule"] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("target", "values"),
    [
        (Sparsity(0.5), [0.3, 0.4, 0.5]),
        (Sparsity(0.15), [0.05, 0.15]),
        (MaxMacs(0.3), [0.5, 0.4, 0.3]),
        (MaxBytes(0.85), [0.95, 0.85]),
        (MaxBytes(1.0), [1.0]),
    ],
)
def test_targets_on_the_way(target, values) -> None:
    found = Recipe(schedule=(0.2, 0.1, 0.0)).targets(target)
    assert [one.value for one in found] == pytest.approx(values)
    assert {type(one) for one in found} == {type(target)}


def test_a_hard_target_is_reached_by_way_of_an_easier_one(network, images) -> None:
    recipe = dataclasses.replace(RECIPES["default"], method=QUICK)
    note = "pruned to sparsity 0.7 on the way, and on from there"
    gradual = secateur.prune(network, images, sparsity=0.8, recipe=recipe)
    once = dataclasses.replace(recipe, schedule=(0.0,))
    at_once = secateur.prune(network, images, sparsity=0.8, recipe=once)
    assert note in gradual.report.notes
    assert note not in at_once.report.notes
    assert not torch.equal(gradual.model.b.weight, at_once.model.b.weight)
    for result in (gradual, at_once):
        assert result.report.sparsity == pytest.approx(0.8, abs=1e-3)


class Moody(secateur.Uniform):
    """Leaves a layer a fifth of its weights at first, and half of them in the end."""

    def fit(self, inputs):
        share = 0.5 if inputs.weights else 0.2
        return Fixed([round(layer.weights * share) for layer in inputs.layers])


class Fixed(FittedUniform):
    def kept(self, budget):
        return list(self.sizes)


@pytest.mark.parametrize(
    "method", [QUICK, secateur.Magnitude(), secateur.LeastSquares(), ADMM()], ids=name_of
)
def test_a_layer_may_keep_more_than_the_level_before_left_it(network, images, method) -> None:
    recipe = Recipe(method=method, allocation=Moody(), schedule=(0.1, 0.0))
    chosen = ["b", "c", "head"]
    result = secateur.prune(network, images, sparsity=0.5, recipe=recipe, include=chosen)
    assert [layer.name for layer in result.report.layers] == chosen
    for layer in result.report.layers:
        weight = result.model.get_submodule(layer.name).weight
        assert int(weight.count_nonzero()) == round(weight.numel() * 0.5)


@pytest.mark.parametrize(
    ("asked", "on_the_way"),
    [
        ({"sparsity": 0.6}, "sparsity 0.5"),
        ({"sparsity": 0.59}, None),
        ({"max_macs": 0.2}, "max_macs 0.3"),
        ({"max_macs": 0.8}, None),
    ],
)
def test_easy_targets_are_walked_to_at_once(network, images, asked, on_the_way) -> None:
    recipe = dataclasses.replace(RECIPES["default"], method=secateur.Magnitude())
    notes = secateur.prune(network, images, **asked, recipe=recipe).report.notes
    found = [note for note in notes if note.startswith("pruned to")]
    wanted = [] if on_the_way is None else [f"pruned to {on_the_way} on the way, and on from there"]
    assert found == wanted


def test_a_method_that_does_not_tell_its_steps_has_none(network, images) -> None:
    @dataclasses.dataclass(frozen=True)
    class Silent:
        start: secateur.Magnitude = dataclasses.field(default_factory=secateur.Magnitude)

        def solve(self, problem, pattern, kept):
            return self.start.solve(problem, pattern, kept)

    result = secateur.prune(network, images, sparsity=0.5, method=Silent())
    assert not result.steps
    assert not result.report.steps
    assert result.report.sparsity == pytest.approx(0.5, abs=0.002)
