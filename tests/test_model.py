"""Models: construction, the parameter buffer, initial weights, files."""

from __future__ import annotations

import json
import os
import stat
import struct

import numpy as np
import pytest
from helpers import assert_same_bits, make_data, make_trainer, same_bits
from safetensors.numpy import load_file, save, save_file

import fastbatch as fb
from fastbatch import ops

# -- construction --------------------------------------------------------------------------------------------------


def test_mlp_is_dense_activation_dropout_and_a_linear_end():
    model = fb.MLP([7, 5, 4, 3], activation="gelu", dropout=0.2, init="lecun_normal")
    hidden = {"activation": "gelu", "init": "lecun_normal"}
    assert model.layers == (
        fb.Dense(5, **hidden),
        fb.Dropout(0.2),
        fb.Dense(4, **hidden),
        fb.Dropout(0.2),
        fb.Dense(3, init="lecun_normal"),
    )
    assert (model.input_size, model.output_size, model.dtype, model.seed) == (7, 3, "float32", 0)
    assert fb.MLP([7, 5, 3]).layers == (fb.Dense(5, activation="relu"), fb.Dense(3))
    assert fb.MLP((7, 3)).layers == (fb.Dense(3),)
    assert isinstance(model, fb.Sequential)


def test_mlp_is_the_sequential_of_its_layers():
    model = fb.MLP([7, 5, 3], activation="tanh", seed=4)
    same = fb.Sequential([fb.Dense(5, activation="tanh"), fb.Dense(3)], input_size=7, seed=4)
    assert_same_bits(model.parameters, same.parameters)


def test_layers_are_values():
    assert fb.Dense(3, "logistic") == fb.Dense(3, "sigmoid")
    assert fb.Dense(3) != fb.Dense(3, bias=False)
    assert fb.Activation("linear") == fb.Activation("identity")
    assert len({fb.Dropout(0.5), fb.Dropout(0.5), fb.Dropout(0.25)}) == 2
    with pytest.raises(AttributeError):
        fb.Dense(3).units = 4


def test_parameters_lie_w_then_b_without_gaps():
    model = fb.Sequential(
        [fb.Dropout(0.1), fb.Dense(5), fb.Activation("relu"), fb.Dense(4, bias=False), fb.Dense(3)], input_size=7
    )
    assert [(w.shape, None if b is None else b.shape) for w, b in model.weights] == [
        ((7, 5), (5,)), ((5, 4), None), ((4, 3), (3,)),
    ]  # fmt: skip
    assert model.num_parameters == model.parameters.size == 7 * 5 + 5 + 5 * 4 + 4 * 3 + 3
    assert model.parameters.ndim == 1
    assert model.parameters.flags.c_contiguous
    model.parameters[:] = np.arange(model.num_parameters)
    parts = [part.ravel() for pair in model.weights for part in pair if part is not None]
    assert np.concatenate(parts).tolist() == list(range(model.num_parameters))
    for part in parts:
        assert part.flags.writeable
        assert np.shares_memory(part, model.parameters)
    # row-major (I, O): the second weight of the first row belongs to the first input
    assert model.weights[0][0][0, 1] == 1
    assert model.weights[0][0][1, 0] == 5


def test_summary_names_layers_widths_and_counts():
    model = fb.Sequential(
        [fb.Dense(50, activation="gelu"), fb.Dropout(0.25), fb.Activation("tanh"), fb.Dense(10, bias=False)],
        input_size=30,
        dtype="float64",
    )
    head, *layers, foot = model.summary().splitlines()
    assert head.split() == ["layer", "outputs", "parameters"]
    assert [line.split()[-2:] for line in layers] == [["50", "1,550"], ["50", "0"], ["50", "0"], ["10", "500"]]
    for line, word in zip(layers, ("gelu", "0.25", "tanh", "Dense")):
        assert word in line
    assert foot == "30 inputs, 2,050 parameters, float64"


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, np.dtype("float64")])
def test_dtype_lives_on_the_model(dtype):
    model = fb.MLP([3, 4, 2], dtype=dtype)
    name = np.dtype(dtype).name
    assert model.dtype == name
    assert model.parameters.dtype == name
    assert model.predict(np.zeros((5, 3))).dtype == name
    trainer = fb.Trainer(model, "mse")
    trainer.step(np.ones((5, 3)), np.ones((5, 2)))
    assert trainer.gradients(np.ones((5, 3)), np.ones((5, 2)))[1].dtype == name


def test_float64_keeps_what_float32_rounds_away():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    model = fb.MLP([3, 4, 2], activation="tanh", dtype="float64")
    (w1, b1), (w2, b2) = model.weights
    np.testing.assert_allclose(model.predict(x), np.tanh(x @ w1 + b1) @ w2 + b2, rtol=1e-13, atol=1e-15)


def test_every_placement_of_activation_and_dropout_trains():
    x, y = make_data("mse", 40)
    layers = [
        fb.Dropout(0.1), fb.Activation("tanh"), fb.Dense(8), fb.Dropout(0.1), fb.Activation("relu"), fb.Dropout(0.2),
        fb.Activation("silu"), fb.Activation("sigmoid"), fb.Dense(4), fb.Activation("softplus"), fb.Dropout(0.1),
    ]  # fmt: skip
    trainer = fb.Trainer(fb.Sequential(layers, input_size=5), "mse", fb.Adam(lr=1e-2))
    losses = trainer.fit(x, y, batch_size=8, epochs=20)["loss"]
    assert losses[-1] < losses[0]
    (w1, b1), (w2, b2) = ([part.astype(float) for part in pair] for pair in trainer.model.weights)
    a = np.maximum(np.tanh(x) @ w1 + b1, 0)
    a = 1 / (1 + np.exp(-a / (1 + np.exp(-a))))
    np.testing.assert_allclose(trainer.predict(x), np.log1p(np.exp(a @ w2 + b2)), rtol=1e-5)


# -- initial weights -----------------------------------------------------------------------------------------------

VARIANCES = {
    "he": lambda i, o: 2 / i,
    "glorot": lambda i, o: 2 / (i + o),
    "lecun": lambda i, o: 1 / i,
}


@pytest.mark.parametrize("law", ["normal", "uniform"])
@pytest.mark.parametrize("family", VARIANCES)
def test_initial_weights_have_the_law_of_their_name(family, law):
    i, o = 300, 200
    w, b = fb.MLP([i, o], init=f"{family}_{law}").weights[0]
    variance = VARIANCES[family](i, o)
    # 60,000 draws: 5 sigma of the mean and of the variance (kurtosis at most 3)
    assert abs(w.mean()) < 5 * np.sqrt(variance / w.size)
    assert abs(w.var() / variance - 1) < 5 * np.sqrt(2 / w.size)
    limit = np.sqrt(3 * variance)
    if law == "uniform":
        assert 0.999 * limit < np.abs(w).max() <= 1.000001 * limit
    else:
        assert np.abs(w).max() > 1.5 * limit
    assert not b.any()


@pytest.mark.parametrize("shape", [(20, 20), (30, 7), (7, 30), (1, 5), (5, 1)])
def test_orthogonal(shape):
    w = fb.MLP(shape, init="orthogonal", dtype="float64").weights[0][0]
    gram = w.T @ w if shape[0] >= shape[1] else w @ w.T
    np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-13)


def test_zeros():
    assert not fb.MLP([4, 3, 2], init="zeros").parameters.any()


@pytest.mark.parametrize("activation", sorted(ops.ACTIVATIONS))
def test_auto_follows_the_activation_behind_the_layer(activation):
    expected = "he_uniform" if ops.ACTIVATIONS[activation].gain == "he" else "glorot_uniform"
    model = fb.MLP([6, 5, 3], activation=activation)
    named = fb.Sequential(
        [fb.Dense(5, activation=activation, init=expected), fb.Dense(3, init="glorot_uniform")], input_size=6
    )
    apart = fb.Sequential([fb.Dense(5), fb.Activation(activation), fb.Dense(3)], input_size=6)
    assert_same_bits(model.parameters, named.parameters)
    assert_same_bits(apart.parameters, named.parameters)


def test_the_relu_family_and_the_saturating_ones_differ():
    assert {name for name, row in ops.ACTIVATIONS.items() if row.gain == "he"} >= {"relu", "leaky_relu", "gelu", "silu"}
    assert {name for name, row in ops.ACTIVATIONS.items() if row.gain != "he"} >= {"tanh", "sigmoid", "identity"}


@pytest.mark.parametrize("init", ["auto", *sorted(set(ops.INITIALIZERS) - {"zeros"})])
def test_the_seed_decides_the_weights_and_every_layer_draws_its_own(init):
    a, same, other = (fb.MLP([6, 6, 6], init=init, seed=seed) for seed in (0, 0, 1))
    assert_same_bits(a.parameters, same.parameters)
    assert not same_bits(a.parameters, other.parameters)
    assert not same_bits(a.weights[0][0], a.weights[1][0])


def test_both_dtypes_start_from_the_same_draws():
    single, double = fb.MLP([6, 5, 3]), fb.MLP([6, 5, 3], dtype="float64")
    assert_same_bits(single.parameters, double.parameters.astype(np.float32))


def test_probabilities_without_training_are_refused():
    model = fb.MLP([3, 2])
    with pytest.raises(fb.ArgumentError, match="untrained"):
        model.predict_proba(np.zeros((1, 3)))
    fb.Trainer(model, "mse").step(np.ones((1, 3)), np.ones((1, 2)))
    with pytest.raises(fb.ArgumentError, match="mse"):
        model.predict_proba(np.zeros((1, 3)))


# -- files ---------------------------------------------------------------------------------------------------------


def _models():
    layers = [
        fb.Dropout(0.1),
        fb.Dense(6, activation="gelu", bias=False, init="he_normal"),
        fb.Activation("elu"),
        fb.Dense(4),
    ]
    for dtype in ("float32", "float64"):
        yield fb.Sequential(layers, input_size=5, seed=3, dtype=dtype)


LOSSES = [
    "mse", "mae", "bce", "cross_entropy", fb.losses.Huber(delta=0.3), fb.losses.BCE(pos_weight=[1.0, 2.0, 0.1, 4.0]),
    fb.losses.CrossEntropy(weight=(1.0, 0.1, 3.0, 1.0), label_smoothing=0.1),
]  # fmt: skip


@pytest.mark.parametrize("model", list(_models()), ids=lambda m: m.dtype)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_saved_model_comes_back(model, loss, tmp_path):
    model = model.copy()
    name = loss if isinstance(loss, str) else loss.name
    x, y = make_data(name, 20)
    fb.Trainer(model, loss).fit(x, y)
    model.save(tmp_path / "model.safetensors")
    back = fb.load(str(tmp_path / "model.safetensors"))
    assert_same_bits(back.parameters, model.parameters)
    assert back.loss == model.loss == ops.get_loss(loss)
    assert (back.layers, back.input_size, back.seed, back.dtype) == (
        model.layers, model.input_size, model.seed, model.dtype,
    )  # fmt: skip
    assert_same_bits(back.predict(x), model.predict(x))
    if name in ("bce", "cross_entropy"):
        assert_same_bits(back.predict_proba(x), model.predict_proba(x))
    a, b = fb.Trainer(model, loss), fb.Trainer(back, loss)
    a.fit(x, y), b.fit(x, y)
    assert_same_bits(back.parameters, model.parameters)


def test_an_untrained_model_comes_back_untrained(tmp_path):
    model = fb.MLP([3, 2])
    model.save(tmp_path / "m")
    assert fb.load(tmp_path / "m").loss is None


def test_odd_values_come_back(tmp_path):
    model = fb.MLP([3, 3])
    model.parameters[:8] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38, 1, -1]
    model.save(tmp_path / "m")
    assert_same_bits(fb.load(tmp_path / "m").parameters, model.parameters)


def test_layers_given_in_numpy_types_can_be_saved(tmp_path):
    model = fb.Sequential(
        [fb.Dense(np.int64(4), bias=np.bool_(True)), fb.Dropout(np.float32(0.5)), fb.Dense(2)],
        input_size=np.int32(3),
        seed=np.uint8(7),
    )
    fb.Trainer(model, fb.losses.Huber(delta=np.float64(0.5))).step(np.ones((2, 3)), np.ones((2, 2)))
    model.save(tmp_path / "m")
    back = fb.load(tmp_path / "m")
    assert back.layers == model.layers
    assert_same_bits(back.parameters, model.parameters)


def test_the_file_is_plain_safetensors(tmp_path):
    model = next(_models())
    model.save(tmp_path / "m")
    tensors = load_file(tmp_path / "m")
    assert sorted(tensors) == ["0.w", "1.b", "1.w"]
    assert_same_bits(tensors["0.w"], model.weights[0][0])
    assert_same_bits(tensors["1.w"], model.weights[1][0])


@pytest.mark.skipif(os.name != "posix", reason="permissions and umask are POSIX")
def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    fb.MLP([3, 2]).save(tmp_path / "m")
    (tmp_path / "plain").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("m", "plain")]
    assert oct(modes[0]) == oct(modes[1])


def test_saving_over_a_file_replaces_it(tmp_path):
    first, second = fb.MLP([3, 2]), fb.MLP([3, 5, 2])
    first.save(tmp_path / "m")
    second.save(tmp_path / "m")
    assert_same_bits(fb.load(tmp_path / "m").parameters, second.parameters)
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, fails, error):
    def fail(*_):
        raise error

    old = fb.MLP([3, 2])
    old.save(tmp_path / "m")
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(type(error)):
        fb.MLP([3, 5, 2]).save(tmp_path / "m")
    monkeypatch.undo()
    assert_same_bits(fb.load(tmp_path / "m").parameters, old.parameters)
    assert os.listdir(tmp_path) == ["m"]


def test_saving_into_no_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fb.MLP([3, 2]).save(tmp_path / "nowhere" / "m")


# -- files that are not ours, or damaged ---------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    """A trained model's file."""
    trainer = make_trainer("cross_entropy")
    trainer.step(*make_data("cross_entropy"))
    trainer.model.save(tmp_path / "saved")
    return tmp_path / "saved"


def _refused(path, *words):
    with pytest.raises(fb.CheckpointError) as caught:
        fb.load(path)
    message = str(caught.value)
    assert str(path) in message
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("cut", [k / 20 for k in range(20)] + ["header length", "header", "last byte"])
def test_a_truncated_file(saved, cut):
    data = saved.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    length = {"header length": 8, "header": header, "last byte": len(data) - 1}.get(cut)
    saved.write_bytes(data[: int(cut * len(data)) if length is None else length])
    _refused(saved)


def test_a_file_with_bytes_behind_it(saved):
    saved.write_bytes(saved.read_bytes() + b"more")
    _refused(saved)


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes(tmp_path, seed):
    (tmp_path / "noise").write_bytes(np.random.default_rng(seed).bytes(1000 * seed + 5))
    _refused(tmp_path / "noise")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"PK\x03\x04" + bytes(100), b"\x93NUMPY", struct.pack("<Q", 2**63), struct.pack("<Q", 2) + b"{}"],
)
def test_foreign_bytes(tmp_path, data):
    (tmp_path / "foreign").write_bytes(data)
    _refused(tmp_path / "foreign")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        fb.load(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        fb.load(str(tmp_path / "no folder" / "missing"))


def test_a_folder(tmp_path):
    _refused(tmp_path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "np"}])
def test_a_foreign_safetensors_file(tmp_path, metadata):
    save_file({"0.w": np.zeros((3, 2), np.float32)}, tmp_path / "foreign", metadata)
    _refused(tmp_path / "foreign", "another safetensors file")


def _parts(path):
    """Tensors and metadata of a file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return load_file(path), json.loads(data[8 : 8 + length])["__metadata__"]


def test_a_newer_format_is_refused_by_name(saved):
    tensors, metadata = _parts(saved)
    newer = int(metadata["format_version"]) + 1
    saved.write_bytes(save(tensors, {**metadata, "format_version": str(newer)}))
    _refused(saved, f"got {newer}", "newer fastbatch")


@pytest.mark.parametrize("key", ["0.w", "0.b", "1.w", "1.b"])
def test_a_missing_tensor(saved, key):
    tensors, metadata = _parts(saved)
    del tensors[key]
    saved.write_bytes(save(tensors, metadata))
    _refused(saved)


@pytest.mark.parametrize("key", ["0.w", "0.b", "1.w", "1.b"])
@pytest.mark.parametrize(
    "change",
    [lambda a: a[:-1], lambda a: a.reshape(-1, 1), lambda a: a.ravel()[None, None], lambda a: np.stack([a, a])],
)
def test_a_tensor_of_the_wrong_shape(saved, key, change):
    tensors, metadata = _parts(saved)
    saved.write_bytes(save({**tensors, key: np.ascontiguousarray(change(tensors[key]))}, metadata))
    _refused(saved)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool"])
def test_a_tensor_of_another_dtype(saved, dtype):
    tensors, metadata = _parts(saved)
    saved.write_bytes(save({**tensors, "0.w": tensors["0.w"].astype(dtype)}, metadata))
    _refused(saved)


DAMAGE = {
    "no description": lambda m: m.pop("model"),
    "no version": lambda m: m.pop("format_version"),
    "version": lambda m: m.update(format_version="one"),
    "not JSON": lambda m: m.update(model=m["model"][:-5]),
    "a list": lambda m: m.update(model="[]"),
    "a number": lambda m: m.update(model="1"),
    "null": lambda m: m.update(model="null"),
    "deep": lambda m: m.update(model="[" * 100_000),
}
FIELDS = {
    "layers": [None, 1, "Dense", [], [["Dense"]], [["Lstm", {"units": 3}]], [["Dense", {"units": 0}]], [[{}, {}]],
               [["Dense", {"unit": 3}]], [["Dense", ["units"]]], [["Dense", {"units": 16}]],
               [["Dense", {"units": 10**15}], ["Dense", {"units": 4}]]],
    "input_size": [None, 0, -1, "5", 6, 10**15],
    "dtype": [None, "int32", 5, "float99"],
    "seed": [None, -1, "x"],
    "loss": [1, "mse", ["mse"], ["nothing", {}], ["huber", {"delta": -1}], ["mse", {"delta": 1}], [[], {}]],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_description(saved, damage):
    tensors, metadata = _parts(saved)
    DAMAGE[damage](metadata)
    saved.write_bytes(save(tensors, metadata))
    _refused(saved)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in FIELDS.items() for value in values])
def test_a_damaged_field(saved, field, value):
    tensors, metadata = _parts(saved)
    description = json.loads(metadata["model"])
    description[field] = value
    saved.write_bytes(save(tensors, {**metadata, "model": json.dumps(description)}))
    _refused(saved)


@pytest.mark.parametrize("field", ["layers", "input_size", "dtype", "seed", "loss"])
def test_a_missing_field(saved, field):
    tensors, metadata = _parts(saved)
    description = json.loads(metadata["model"])
    del description[field]
    saved.write_bytes(save(tensors, {**metadata, "model": json.dumps(description)}))
    _refused(saved)


def test_every_single_damaged_byte_of_the_header_is_noticed_or_harmless(saved):
    """Never another exception, whatever byte of the header is hit."""
    data = saved.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    loaded = fb.load(saved).parameters
    refused = 0
    for position in range(0, header, 7):
        broken = bytearray(data)
        broken[position] ^= 0x11
        saved.write_bytes(broken)
        try:
            same = fb.load(saved).parameters
        except fb.CheckpointError:
            refused += 1
        else:
            assert same.shape == loaded.shape
    assert refused > header / 7 / 2
