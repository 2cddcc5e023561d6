"""Fast linear layers and dropout compute what torch's own do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import Vocabulary
from macrec_pipeline.runtime import fast_layers
from macrec_pipeline.runtime.fast_layers import ByteDropout, Linear, linear, pack_weights, use_fast_linear

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="torch without oneDNN",
)


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN whatever the processor."""
    monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda: True)


def _operands(*shape: int, bias: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(*shape, generator=generator, requires_grad=True),
        torch.randn(24, shape[-1], generator=generator, requires_grad=True),
        torch.randn(24, generator=generator, requires_grad=True) if bias else None,
    )


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (3, 5, 40), (2, 1, 3, 40), (0, 40), (2, 0, 40), (40,)])
def test_values_and_gradients_equal_those_in_double_precision(shape: tuple[int, ...], bias: bool) -> None:
    operands = _operands(*shape, bias=bias)
    doubled = [part if part is None else part.detach().double().requires_grad_() for part in operands]
    result, expected = linear(*operands), F.linear(*doubled)  # type: ignore[arg-type]
    torch.testing.assert_close(result, expected.float())
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6))
    result.backward(direction)  # type: ignore[no-untyped-call]
    expected.backward(direction.double())  # type: ignore[no-untyped-call]
    for part, double in zip(operands, doubled, strict=True):
        if part is not None and double is not None:
            assert part.grad is not None
            assert double.grad is not None
            torch.testing.assert_close(part.grad, double.grad.float())
    with torch.no_grad():
        torch.testing.assert_close(linear(*operands), expected.detach().float())


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_only_operands_that_require_a_gradient_get_one() -> None:
    states, weight, bias = _operands(6, 40)
    linear(states.detach(), weight, bias).sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is None
    assert weight.grad is not None
    weight.grad = None
    linear(states, weight.detach(), bias).sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert weight.grad is None


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_strided_states_are_read_correctly() -> None:
    states, weight, _ = _operands(40, 6, 40)
    for view in (states.transpose(0, 1), states[::2], states[:, 3:4], states.permute(2, 1, 0)):
        torch.testing.assert_close(linear(view, weight), F.linear(view.double(), weight.double()).float())


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_other_precisions_are_computed_by_torch() -> None:
    states, weight, bias = _operands(6, 40)
    assert torch.equal(linear(states.double(), weight.double()), F.linear(states.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        result = linear(states, weight, bias)
    assert result.dtype == torch.bfloat16


@needs_onednn
def test_mkl_is_used_where_onednn_is_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda: False)
    monkeypatch.setattr(fast_layers, "_onednn_linear", lambda *_: pytest.fail("oneDNN must not be used"))
    states, weight, bias = _operands(6, 40)
    assert torch.equal(linear(states, weight, bias), F.linear(states, weight, bias))


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
def test_a_layer_keeps_its_hooks_and_subclasses_are_left_alone() -> None:
    """Hooks matter, since some weight normalizations compute the weights in one before each pass."""

    class Doubled(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    torch.manual_seed(3)
    hooked, doubled = nn.Linear(8, 4), Doubled(8, 4)
    hooked.register_forward_hook(lambda *_: torch.zeros(1))
    states = torch.ones(2, 8)
    expected = doubled(states)
    use_fast_linear(nn.Sequential(hooked, doubled))
    assert torch.equal(hooked(states), torch.zeros(1))
    assert torch.equal(doubled(states), expected)


def test_a_module_keeps_its_parameters_and_mode() -> None:
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2, bias=False), nn.Dropout())).eval()
    before = dict(copy.deepcopy(plain).state_dict())
    parameters = dict(plain.named_parameters())
    fast = use_fast_linear(plain)
    assert fast is plain
    assert dict(fast.named_parameters()).keys() == parameters.keys()
    assert all(parameter is parameters[name] for name, parameter in fast.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert [type(layer) for layer in fast.modules()].count(Linear) == 2
    assert not any(layer.training for layer in fast.modules())


@needs_onednn
def test_the_recommender_uses_fast_layers_and_its_embedding_stays_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RecommenderConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    vocabulary = Vocabulary(num_levels=2, codebook_size=4, num_prompt_tokens=1)
    spec = ModelSpec.from_settings(vars(config))
    model = GenerativeRecommender(vocabulary, spec, torch.Generator().manual_seed(1)).eval()
    assert model.t5.lm_head.weight is model.t5.shared.weight
    assert not any(type(layer) is nn.Linear for layer in model.modules())
    tokens = torch.arange(6).view(1, 6)
    results = []
    for fast in (True, False):
        monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda fast=fast: fast)
        model.zero_grad()
        states = model.encode(tokens)
        states.square().sum().backward()  # type: ignore[no-untyped-call]
        results.append([states, *(parameter.grad for parameter in model.t5.encoder.block[0].parameters())])
    for fast_result, plain_result in zip(*results, strict=True):
        torch.testing.assert_close(fast_result, plain_result)


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("num_rows", [1, 7, 32, 300])
def test_packed_weights_change_no_number_in_inference(num_rows: int) -> None:
    """With a gradient, the layer computes with its parameters, as before."""
    torch.manual_seed(3)
    plain = use_fast_linear(nn.Sequential(nn.Linear(128, 96)))
    packed = pack_weights(copy.deepcopy(plain))
    states = torch.randn(num_rows, 128)
    with torch.no_grad():
        assert torch.equal(packed(states), plain(states))
        packed[0].weight.zero_()
        if num_rows > 1:
            assert torch.equal(packed(states), plain(states)), "the packed copy is used"
    assert torch.equal(packed(states), packed[0].bias.expand(num_rows, -1))


def test_nothing_is_packed_where_onednn_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda: False)
    layer = pack_weights(use_fast_linear(nn.Sequential(nn.Linear(4, 3))))
    with torch.no_grad():
        layer[0].weight.zero_()
        assert torch.equal(layer(torch.ones(2, 4)), layer[0].bias.expand(2, -1))


def test_dropout_drops_its_share_and_keeps_the_expectation() -> None:
    """A rate of 0.1 drops 26 of 256 elements and scales the others so that the mean stays."""
    dropout = ByteDropout(0.1, torch.Generator().manual_seed(0)).train()
    dropped = dropout(torch.ones(1000, 1001))
    assert (dropped == 0).float().mean().item() == pytest.approx(26 / 256, abs=1e-3)
    assert dropped.mean().item() == pytest.approx(1.0, abs=2e-3)
    assert dropout.eval()(torch.ones(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_scales_exactly_in_any_precision(dtype: torch.dtype) -> None:
    """A scale that was rounded to bfloat16 would make the survivors a third of a percent too small on average."""
    states = torch.rand(500, 500, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    dropped = ByteDropout(0.1, torch.Generator().manual_seed(0)).train()(states)
    (dropped * states.detach()).sum().backward()
    survives = dropped != 0
    for scaled in (dropped, states.grad):
        assert scaled is not None
        ratio = scaled[survives].double().sum() / states[survives].double().sum()
        assert ratio.item() == pytest.approx(256 / 230, rel=2e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_after_relu_equals_both_in_sequence(dtype: torch.dtype) -> None:
    """Numbers and gradients are the same for the same draw."""
    states = torch.randn(33, 7, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    direction = torch.randn(33, 7, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    results = []
    for apply in (ByteDropout.after_relu, lambda dropout, values: dropout(torch.relu(values))):
        leaf = states.clone().requires_grad_()
        dropped = apply(ByteDropout(0.3, torch.Generator().manual_seed(0)).train(), leaf * 1)
        (dropped * direction).sum().backward()
        results.append((dropped.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert ByteDropout(0.3).eval().after_relu(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]
