"""Linear layers by the faster of torch's two libraries, against torch's own in double precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import Vocabulary
from macrec_pipeline.runtime import fast_layers
from macrec_pipeline.runtime.fast_layers import Linear, linear, with_fast_products

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="torch without oneDNN",
)


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the processor."""
    monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda: True)


def _operands(*shape: int, bias: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    draw = torch.Generator().manual_seed(5)
    return (
        torch.randn(*shape, generator=draw, requires_grad=True),
        torch.randn(24, shape[-1], generator=draw, requires_grad=True),
        torch.randn(24, generator=draw, requires_grad=True) if bias else None,
    )


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 40), (7, 40), (3, 5, 40), (2, 1, 3, 40), (0, 40), (2, 0, 40), (40,)])
def test_values_and_gradients_are_those_of_double_precision(shape: tuple[int, ...], bias: bool) -> None:
    operands = _operands(*shape, bias=bias)
    doubled = [part if part is None else part.detach().double().requires_grad_() for part in operands]
    found, expected = linear(*operands), F.linear(*doubled)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected.float())
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(6))
    found.backward(direction)  # type: ignore[no-untyped-call]
    expected.backward(direction.double())  # type: ignore[no-untyped-call]
    for part, double in zip(operands, doubled, strict=True):
        if part is not None and double is not None:
            assert part.grad is not None
            assert double.grad is not None
            torch.testing.assert_close(part.grad, double.grad.float())
    with torch.no_grad():
        torch.testing.assert_close(linear(*operands), expected.detach().float())


@pytest.mark.usefixtures("by_onednn")
def test_a_gradient_reaches_only_what_asks_for_one() -> None:
    states, weight, bias = _operands(6, 40)
    linear(states.detach(), weight, bias).sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is None
    assert weight.grad is not None
    weight.grad = None
    linear(states, weight.detach(), bias).sum().backward()  # type: ignore[no-untyped-call]
    assert states.grad is not None
    assert weight.grad is None


@pytest.mark.usefixtures("by_onednn")
def test_transposed_and_sliced_states_are_read_as_they_are_meant() -> None:
    states, weight, _ = _operands(40, 6, 40)
    for view in (states.transpose(0, 1), states[::2], states[:, 3:4], states.permute(2, 1, 0)):
        torch.testing.assert_close(linear(view, weight), F.linear(view.double(), weight.double()).float())


@pytest.mark.usefixtures("by_onednn")
def test_other_precisions_are_left_to_torch() -> None:
    states, weight, bias = _operands(6, 40)
    assert torch.equal(linear(states.double(), weight.double()), F.linear(states.double(), weight.double()))
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(states, weight, bias)
    assert found.dtype == torch.bfloat16


def test_where_mkl_is_as_fast_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda: False)
    monkeypatch.setattr(fast_layers, "_onednn", lambda *_: pytest.fail("not asked for"))
    states, weight, bias = _operands(6, 40)
    assert torch.equal(linear(states, weight, bias), F.linear(states, weight, bias))


@pytest.mark.usefixtures("by_onednn")
def test_a_layer_keeps_its_hooks_and_others_kinds_are_left_alone() -> None:
    """Older ways of normalizing weights make them before each pass, in a hook."""

    class Doubled(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(states)

    torch.manual_seed(3)
    hooked, doubled = nn.Linear(8, 4), Doubled(8, 4)
    hooked.register_forward_hook(lambda *_: torch.zeros(1))
    states = torch.ones(2, 8)
    expected = doubled(states)
    with_fast_products(nn.Sequential(hooked, doubled))
    assert torch.equal(hooked(states), torch.zeros(1))
    assert torch.equal(doubled(states), expected)


def test_a_module_keeps_its_parameters_names_and_mode() -> None:
    plain = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2, bias=False), nn.Dropout())).eval()
    before = dict(copy.deepcopy(plain).state_dict())
    own = dict(plain.named_parameters())
    fast = with_fast_products(plain)
    assert fast is plain
    assert dict(fast.named_parameters()).keys() == own.keys()
    assert all(parameter is own[name] for name, parameter in fast.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert [type(layer) for layer in fast.modules()].count(Linear) == 2
    assert not any(layer.training for layer in fast.modules())


def test_the_recommender_multiplies_by_it_and_its_embedding_stays_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RecommenderConfig(d_model=16, d_ff=32, d_kv=8, num_heads=2, num_encoder_layers=1, num_decoder_layers=1)
    vocabulary = Vocabulary(num_levels=2, codebook_size=4, num_prompt_tokens=1)
    model = GenerativeRecommender(vocabulary, config, torch.Generator().manual_seed(1)).eval()
    assert model.t5.lm_head.weight is model.t5.shared.weight
    assert not any(type(layer) is nn.Linear for layer in model.modules())
    tokens = torch.arange(6).view(1, 6)
    found = []
    for fast in (True, False):
        monkeypatch.setattr(fast_layers, "_onednn_is_faster", lambda fast=fast: fast)
        model.zero_grad()
        states = model.encode(tokens)
        states.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append([states, *(parameter.grad for parameter in model.t5.encoder.block[0].parameters())])
    for own, plain in zip(*found, strict=True):
        torch.testing.assert_close(own, plain)
