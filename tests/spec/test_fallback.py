"""The group `fallback`: what changes on the data set that stands in. Its mistakes are told before a launch."""

import pytest

from qdtune.messages import SpecError
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads

FILE = """
version: 1
name: small
parameters:
  depth: {values: [1, 2, 3]}
  weight_bits: {values: [1, 2]}
  hidden: {value: 24}
data: {dataset: [mnist, digits]}
train:
  batch_size: 64
  warmup: {epochs: 2, lr: 0.1}
  qat: {epochs: 3, lr: 0.1, optimizer: adam}
early_terminate: {type: pareto, margin: 0.02}
fallback:
"""
GOOD = """
  seeds: [5, 6]
  parameters:
    depth: {value: 2}
    hidden: {values: [8, 12]}
  exclude: [{weight_bits: 1, hidden: 12}]
  train: {qat: {epochs: 9}}
  early_terminate: {type: none}
"""


def file(text):
    return loads((FILE + text).encode(), "a.yaml")


def refusals(text):
    with pytest.raises(SpecError) as caught:
        file(text)
    return str(caught.value).splitlines()


def test_the_first_data_set_is_as_without_it():
    spec = file(GOOD).resolve("mnist")
    assert spec == loads(FILE.removesuffix("fallback:\n").encode(), "a.yaml").resolve("mnist")
    assert "fallback" not in spec.to_yaml()


def test_another_data_set_has_what_it_changes_and_the_rest_of_the_file():
    spec = file(GOOD).resolve("digits")
    assert spec.seeds == (5, 6)
    found = {(t.depth, t.bits, t.hidden) for t in plan(spec).trials}
    assert found == {(2, 1, (8,)), (2, 2, (8,)), (2, 2, (12,))}
    assert (spec.train.qat.epochs, spec.train.qat.optimizer, spec.train.warmup.epochs) == (9, "adam", 2)
    assert spec.train.batch_size == 64
    assert spec.early_terminate.type == "none"
    assert "fallback" not in spec.to_yaml()


def test_it_may_name_other_objectives():
    spec = file("  objectives: [val_accuracy, macs]")
    assert [one.name for one in spec.resolve("digits").costs] == ["macs"]
    assert [one.name for one in spec.resolve("mnist").costs] == ["size_bytes"]
    assert refusals("  objectives: [macs]") == [
        "error: a.yaml:15: fallback.objectives[0]: macs is a cost: the metric comes first (val_accuracy) (on digits)"
    ]


def test_a_file_with_it_is_written_and_read_again():
    spec = file(GOOD)
    again = loads(spec.to_yaml().encode(), "b.yaml")
    assert again == spec
    assert again.resolve("digits") == spec.resolve("digits")


def test_what_it_does_not_name_stays():
    plain = loads(FILE.replace("fallback:\n", "").encode(), "a.yaml").resolve("digits")
    assert file("  seeds: [0, 1, 2]").resolve("digits") == plain
    assert file("  parameters: {}\n  train: {}").resolve("digits") == plain


def test_null_is_a_value_as_in_a_file_of_its_own():
    base = FILE.replace("fallback:\n", "replicate: {front: 8}\nfallback:\n") + "  replicate: null"
    spec = loads(base.encode(), "a.yaml")
    for one in (spec, loads(spec.to_yaml().encode(), "b.yaml")):
        assert one.resolve("mnist").replicate is not None
        assert one.resolve("digits").replicate is None
    assert refusals("  parameters:\n  seeds: [1]") == [
        "error: a.yaml:15: fallback.parameters: no value (key: value pairs) (on digits)"
    ]


def test_a_mistake_beside_it_is_told_once_and_at_its_own_key():
    text = (FILE + "  seeds: [1]").replace("batch_size: 64", "batch_size: 2000")
    with pytest.raises(SpecError, match=r"a.yaml:10: train.batch_size: 2000 is above the 1150 training samples"):
        loads(text.encode(), "a.yaml")
    with pytest.raises(SpecError) as caught:
        loads((FILE + "  seeds: [1]").encode(), "a.yaml", ["exclude=[{depth: 9}]"])
    assert str(caught.value) == "error: --set: exclude[0].depth: 9 never occurs in parameters.depth"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("  sseds: [1]", "a.yaml:15: fallback: unknown key 'sseds'; did you mean 'seeds'?"),
        ("  data: {val_size: 3}", "a.yaml:15: fallback: unknown key 'data'"),
        ("  Seeds: [1]", "a.yaml:15: fallback: unknown key 'Seeds'; did you mean 'seeds'?"),
        ("  seeds: [1, 1]", "a.yaml:15: fallback.seeds"),
        ("  train: {qat: {lr: .inf}}", "a.yaml:15: fallback.train.qat.lr: inf"),
        ("  parameters: {depth: 3}", "a.yaml:15: fallback.parameters"),
        (
            "  parameters:\n    depht: {value: 3}",
            "a.yaml:15: fallback.parameters: unknown key 'depht'; did you mean 'depth'?",
        ),
        ("  train: {qat: {epochs: 0}}", "a.yaml:15: fallback.train.qat.epochs"),
        ("  train: {batch_size: 2000}", "a.yaml:15: fallback.train.batch_size"),
        ("  early_terminate: {type: pareto, margn: 1}", "a.yaml:15: fallback.early_terminate"),
        ("  replicate: {front: 2}", "a.yaml:15: fallback.replicate.front"),
    ],
)
def test_a_mistake_is_told_at_its_line(text, line):
    (found,) = refusals(text)
    assert found.startswith(f"error: {line}")
    assert found.endswith("(on digits)") is not line.startswith("a.yaml:15: fallback: unknown key")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("  seeds: 3", "3 is not allowed (a list)"), ("  exclude: {depth: 1}", "a mapping is not allowed (a list)")],
)
def test_a_value_of_another_shape_is_told_what_it_should_be(text, wanted):
    assert refusals(text)[0].endswith(wanted)


def test_one_data_set_has_no_use_for_it():
    """So that `--set data.dataset=mnist` needs no other change of the file."""
    spec = loads((FILE + GOOD).replace("[mnist, digits]", "mnist").encode(), "a.yaml")
    assert spec.resolve("mnist") == file(GOOD).resolve("mnist")


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("seeds=[3]", {"seeds": (3,)}),
        ("parameters.depth={value: 3}", {"depths": {3}}),
        ("parameters.depth.values=[3]", {"depths": {3}}),
        ("train.qat.epochs=5", {"epochs": 5}),
        ("train.qat.lr=0.5", {"epochs": 9}),
        ("early_terminate={type: pareto}", {"pruner": "pareto"}),
        ("exclude=[]", {"count": 4}),
        ("fallback.seeds=[9]", {"seeds": (9,)}),
    ],
)
def test_an_override_holds_on_every_data_set(override, found):
    spec = loads((FILE + GOOD).encode(), "a.yaml", [override]).resolve("digits")
    trials = plan(spec).trials
    expected = {"seeds": (5, 6), "depths": {2}, "epochs": 9, "pruner": "none", "count": 3} | found
    depths, pruner = {trial.depth for trial in trials}, spec.early_terminate.type
    assert expected == {
        "seeds": spec.seeds,
        "depths": depths,
        "epochs": spec.train.qat.epochs,
        "pruner": pruner,
        "count": len(trials),
    }


def test_an_override_of_all_that_a_fallback_says_leaves_none():
    text = FILE + "  parameters: {depth: {value: 2}}\n  train: {qat: {epochs: 9}}"
    spec = loads(text.encode(), "a.yaml", ["parameters.depth={value: 3}", "train.qat.epochs=4"])
    assert spec.fallback.given == {}


@pytest.mark.parametrize(
    ("chosen", "changed"),
    [
        ("digits", {"digits"}),
        ("[digits, mnist]", {"digits"}),
        ("[digits, kmnist]", {"digits", "kmnist"}),
        ("[mnist, kmnist, digits]", {"kmnist", "digits"}),
        ("[kmnist, mnist]", set()),
        ("kmnist", set()),
        ("mnist", set()),
    ],
)
@pytest.mark.parametrize("form", ["data.dataset={}", "data={{dataset: {}}}"])
def test_it_is_for_a_data_set_that_stood_in_though_it_is_chosen(chosen, changed, form):
    spec = loads((FILE + GOOD).encode(), "a.yaml", [form.format(chosen)])
    assert {name for name in spec.data.names if spec.is_changed_on(name)} == changed
    assert {name for name in spec.data.names if spec.resolve(name).seeds == (5, 6)} == changed
    assert loads(spec.to_yaml().encode(), "b.yaml") == spec
    for name in {"mnist", "digits"} & {*spec.data.names}:
        assert spec.resolve(name) == file(GOOD).resolve(name)


def test_it_may_name_the_data_sets_that_it_is_for():
    text = (FILE + GOOD).replace("[mnist, digits]", "[mnist, digits, kmnist]")
    spec = loads((text + "  dataset: digits").encode(), "a.yaml")
    assert [spec.resolve(name).seeds for name in spec.data.names] == [(0, 1, 2), (5, 6), (0, 1, 2)]
    assert loads(spec.to_yaml().encode(), "b.yaml") == spec
    chosen = loads((text + "  dataset: digits").encode(), "a.yaml", ["data.dataset=kmnist"])
    assert chosen.resolve("kmnist").seeds == (0, 1, 2)
    assert refusals("  dataset: digist")[0].startswith("error: a.yaml:15: fallback.dataset: unknown 'digist'")


def test_a_mistake_on_a_chosen_data_set_is_told_at_its_line():
    with pytest.raises(SpecError) as caught:
        loads((FILE + "  train: {batch_size: 2000}").encode(), "a.yaml", ["data.dataset=digits"])
    assert str(caught.value) == (
        "error: a.yaml:15: fallback.train.batch_size: 2000 is above the 1150 training samples of digits "
        "(1437 less val_size 287) (on digits)"
    )


@pytest.mark.parametrize("chosen", ["[[3], 1]", "{a: 1}", "3", "null", "[]"])
def test_a_choice_that_names_no_data_set_is_told(chosen):
    with pytest.raises(SpecError, match=r"^error: (--set|a.yaml:8): data"):
        loads((FILE + GOOD).encode(), "a.yaml", [f"data.dataset={chosen}"])
