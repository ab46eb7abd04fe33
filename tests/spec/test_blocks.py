"""The blocks of a `cnn`: what a sweep file may say, the layers they make, and their bytes by arithmetic."""

import pytest

from qdtune.messages import SpecError
from qdtune.spec.axes import BLOCKS
from qdtune.spec.blocks import CnnLayer, cnn_structure, list_cnn_layers
from qdtune.spec.plan import keep_possible, list_violations, make_trial, plan
from qdtune.spec.sweep_file import loads

FILE = b"""
version: 1
name: small
parameters: {depth: {value: 1}, weight_bits: {value: 4}, hidden: {value: []}}
data: {dataset: mnist, val_size: 5000}
model: {name: cnn}
"""


def spec(*overrides):
    return loads(FILE, "small.yaml", overrides)


def told(*overrides):
    with pytest.raises(SpecError) as found:
        spec(*overrides)
    return [
        line.removeprefix("error: ").removeprefix("small.yaml:").split(": ", 1)[1]
        for line in str(found.value).splitlines()
    ]


def test_a_cnn_has_the_blocks_of_the_field_by_default():
    group = spec().model
    assert (group.blocks, group.padding) == (("conv 8", "dw", "pool", "dw", "pool"), "none")
    assert spec("model.blocks=[conv   16 5x5   /2, mean]").model.blocks == ("conv 16 5x5 /2", "mean")
    assert loads(spec().to_yaml().encode(), "again.yaml") == spec()


def test_blocks_become_layers():
    blocks = ("conv 8 5x5 /2", "dw", "pool", "pw 12", "pool 3", "mean")
    assert list_cnn_layers(blocks, None, "none", (3, 28, 29)) == (
        CnnLayer("conv", (3, 28, 29), 8, 5, 2),
        CnnLayer("conv", (8, 12, 13), 8, 3, groups=8),
        CnnLayer("pool", (8, 10, 11), 8, 2, 2),
        CnnLayer("conv", (8, 5, 5), 12),
        CnnLayer("pool", (12, 5, 5), 12, 3, 3),
        CnnLayer("mean", (12, 1, 1), 12),
    )
    same = list_cnn_layers(("conv 8 5x5", "dw /2"), None, "same", (1, 28, 28))
    assert [layer.output for layer in same] == [(8, 28, 28), (8, 14, 14)]


AXIS = "parameters.blocks={values: [[conv   4, pool, mean], [conv 8 5x5 /2, dw]]}"


def test_blocks_may_be_an_axis():
    planned = plan(spec(AXIS, "parameters.channels={values: [null, 6]}"))
    assert {(one.label, one.columns["model"]) for one in planned.trials} == {
        ("d1 w4 identity hnone conv 4-pool-mean", "cnn"),
        ("d1 w4 identity hnone c6 conv 4-pool-mean", "cnn"),
        ("d1 w4 identity hnone conv 8 5x5 /2-dw", "cnn"),
        ("d1 w4 identity hnone c6 conv 8 5x5 /2-dw", "cnn"),
    }
    assert {one.structure.layers[0].outputs for one in planned.trials} == {4, 6, 8}
    for one in planned.trials:
        assert BLOCKS.of_cell(one.cells["blocks"]) == one.blocks
        assert make_trial(planned.spec, one.cells).trial_id == one.trial_id


def test_a_network_has_one_id_however_its_blocks_are_written():
    """Results of a sweep of one list of blocks count in one of several."""
    (alone,) = plan(spec("model.blocks=[conv 4, pool, mean]")).trials
    axis = plan(spec(AXIS)).trials
    assert [one.trial_id == alone.trial_id for one in axis].count(True) == 1
    assert len({one.warmup_id for one in axis}) == len({one.warmup_key for one in axis}) == 2


def test_rows_of_one_list_are_read_where_the_axis_has_several_and_back():
    """A run folder may hold both: a row says null where the sweep had one list."""
    alone = plan(spec("model.blocks=[conv 4, pool, mean]"))
    several = plan(spec(AXIS, "model.blocks=[conv 4, pool, mean]"))
    (one,) = alone.trials
    (same,) = [other for other in several.trials if other.trial_id == one.trial_id]
    for source, target, there in ((one, several, same), (same, alone, one)):
        read = make_trial(target.spec, source.cells)
        assert (read.trial_id, read.key) == (there.trial_id, there.key)
        assert keep_possible(target.spec, [read]) == [read]


def test_blocks_that_do_not_fit_an_image_are_not_run():
    small = "parameters.resolution={values: [4, 28]}"
    planned = plan(spec(AXIS, small))
    assert {(one.resolution, one.blocks[0]) for one in planned.trials} == {
        (4, "conv 4"),
        (28, "conv 4"),
        (28, "conv 8 5x5 /2"),
    }
    assert (planned.infeasible, planned.broken) == (1, {"blocks larger than their image": 1})
    axes = "blocks: {values: [[conv 8], [conv 8, dw]]}, layer_bits: {value: [2, 4, 4]}, weight_bits: {value: 4}"
    planned = plan(spec(f"parameters={{{axes}}}", "model.hidden=[]"))
    assert ([one.blocks for one in planned.trials], planned.infeasible) == ([("conv 8", "dw")], 1)
    searched = spec(AXIS, small, "method=tpe", "run_cap=2")
    violations = [list_violations(searched, one)["unbuildable"] for one in plan(spec(AXIS)).trials]
    assert violations == [0.0, 0.0]


def test_a_small_network_slides_over_the_image():
    """Windows of 8 x 8 pixels at a stride of 4, with 16 hidden units and 4 outputs: 3 x 3 on 16 x 16 pixels."""
    blocks = ("conv 16 8x8 /4", "pw 4")
    together, averaged = (list_cnn_layers(made, None, "none", (1, 16, 16)) for made in (blocks, (*blocks, "mean")))
    assert [layer.output for layer in together] == [(16, 3, 3), (4, 3, 3)]
    shapes = [[layer[:2] for layer in cnn_structure(made, (), 10).layers] for made in (together, averaged)]
    assert shapes == [[(64, 16), (16, 4), (36, 10)], [(64, 16), (16, 4), (4, 10)]]
    assert cnn_structure(together, (), 10).macs(1) == 9 * (64 * 16 + 16 * 4) + 36 * 10


def test_channels_scale_all_blocks():
    blocks = ("conv 8", "dw", "pw 13", "pw 1")
    for channels, expected in ((None, [8, 8, 13, 1]), (4, [4, 4, 7, 1]), (2, [2, 2, 3, 1]), (16, [16, 16, 26, 2])):
        assert [layer.channels for layer in list_cnn_layers(blocks, channels, "none", (1, 9, 9))] == expected


def test_the_bytes_of_a_small_cnn_by_hand():
    """16 x 16 pixels: 14, 12, 6, 4, 2 a side, so 32 features."""
    layers = list_cnn_layers(("conv 8", "dw", "pool", "dw", "pool"), None, "none", (1, 16, 16))
    assert layers[-1].output == (8, 2, 2)
    sizes = cnn_structure(layers, (16,), 10).sizes(1, 2, 8)
    weights = [72, 72, 72, 32 * 16, 160]
    assert sizes.weight_bytes == sum(-(-2 * n // 8) for n in weights)
    assert (sizes.scale_bytes, sizes.bias_bytes) == (4 * 2 * 5, 4 * (8 + 8 + 8 + 16 + 10))
    split = cnn_structure(layers, (16,), 10, batch_norm=True)
    assert split.inner_dims(2) == [[4], [11], [6]]  # depthwise ones stay whole
    assert split.sizes(2, 2, None).bias_bytes == 8 * (8 + 8 + 8 + 16) + 40


def test_images_of_one_pixel_are_images():
    made = spec("parameters.resolution={value: 1}", "model.blocks=[conv 4 1x1, mean]")
    (trial,) = plan(made.resolve("mnist")).trials
    assert trial.structure.layers[0][:2] == (1, 4)
    (line,) = told("parameters.resolution={value: 1}", "model.blocks=[conv 4]")
    assert "'conv 4' is larger than the 1 x 1 pixels" in line


def test_configurations_of_a_cnn_say_so():
    trials = plan(spec("parameters.channels={values: [null, 4]}").resolve("mnist")).trials
    assert {trial.columns["model"] for trial in trials} == {"cnn"}
    assert {trial.label for trial in trials} == {"d1 w4 identity hnone", "d1 w4 identity hnone c4"}
    assert len({trial.warmup_id for trial in trials}) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.blocks=[conv]"], "'conv' is not allowed (conv CHANNELS, pw CHANNELS, dw, pool or mean; "),
        (["model.blocks=[dw 8]"], "'dw 8' is not allowed ("),
        (["model.blocks=[conv 8 3x4]"], "'conv 8 3x4' is not allowed ("),
        (["model.blocks=[]"], "blocks is an empty list ("),
        (["model={name: mlp, blocks: [dw]}"], "blocks is for name: cnn only"),
        (["model={name: mlp, padding: same}"], "padding is for name: cnn only"),
        (["model.padding=valid"], "unknown 'valid' (none, same)"),
        (["model.blocks=[conv 8 30x30]"], "'conv 8 30x30' is larger than the 28 x 28 pixels that are left there"),
        (
            ["parameters.resolution={values: [8, 14]}", "model.blocks=[conv 8, dw, pool, dw, pool]"],
            "'dw' is larger than the 2 x 2 pixels that are left there",
        ),
        (["model.blocks=[conv 8 2x2]", "model.padding=same"], "'conv 8 2x2' has an even kernel"),
        (["model.blocks=[dw, pool]", "parameters.channels={value: 4}"], "has no effect: no block names a number"),
        (["parameters.blocks={values: [[conv 8], [cnv 8]]}"], "'cnv 8' is not allowed ("),
        (["parameters.blocks={value: []}"], "empty list ("),
        (["parameters.blocks={values: [[conv 8], [conv   8]]}"], "conv 8 appears twice"),
        (["parameters.blocks={value: [conv 8 30x30]}"], "'conv 8 30x30' is larger than the 28 x 28 pixels"),
        (
            ["parameters.blocks={values: [null, [conv 8]]}", "model.blocks=[conv 8]"],
            "null is none of several lists (write conv 8)",
        ),
        (["parameters.blocks={value: [conv 8]}", "model={name: mlp}"], "is for model cnn only (or null)"),
        (
            ["parameters={blocks: {values: [[conv 8], [dw]]}, channels: {value: 4}}"],
            "has no effect: dw names no number",
        ),
        (["parameters.blocks={values: [[conv 8, pool], [conv 8 3x3 /1, pool 2]]}"], "make the same layers (one of"),
        (
            ["parameters.blocks={values: [[conv 8], [conv 8 9x9]]}", "parameters.resolution={values: [4, 8]}"],
            "conv 8 9x9: 'conv 8 9x9' is larger than the 8 x 8 pixels that are left there at any resolution",
        ),
        (["model={name: mlp}", "parameters.channels={value: 4}"], "is for model cnn only (or null)"),
        (
            ["parameters.channels={min: 2, max: 9}", "method=random", "run_cap=3", "model={name: mlp}"],
            "is for model cnn",
        ),
        (["data.dataset=fake"], "unknown 'fake'"),
    ],
    ids=str,
)
def test_mistakes_are_told_in_one_line(overrides, message):
    (line,) = told(*overrides)
    assert message in line
