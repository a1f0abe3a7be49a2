"""The attribution methods that the benchmark runs, with Captum's of the same settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attribute = Callable[[], Tensor]

STEPS = 10  # of integrals, noisy inputs and baselines
BASELINES = 4
GRID = 4  # cells of a side
WINDOW = 224 // GRID  # of occlusion, and its stride
LAYER = "net.features.12"  # the last one with maps before those of the classes
UNIT = 5  # a channel of that layer
ROWS_AT_ONCE = 64  # of one pass, on both sides


@dataclass(frozen=True)
class Peer:
    """Captum on the eager network.

    Args:
        network: from images to logits.
        layer: the module that is called LAYER in the archive.
        x: `(N, *shape)`.
        labels: `(N,)` classes.
    """

    network: nn.Module
    layer: nn.Module
    x: Tensor
    labels: Tensor

    def cells(self) -> Tensor:
        """The number of every pixel's cell, `(1, 1, H, W)`."""
        numbers = torch.arange(GRID * GRID).reshape(1, 1, GRID, GRID).float()
        return F.interpolate(numbers, self.x.shape[2:], mode="nearest").long()


@dataclass(frozen=True)
class Case:
    """One method.

    Args:
        captum: makes the call, or None where Captum has no such method.
        params: of the plugin.
        agrees: the largest difference of the two answers over the largest value; None where they
            draw different noise.
    """

    captum: Callable[[Peer], Attribute] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    agrees: float | None = 1e-3


def _plain(name: str, /, **options: Any) -> Callable[[Peer], Attribute]:
    def made(peer: Peer) -> Attribute:
        import captum.attr

        method = getattr(captum.attr, name)(peer.network)
        return lambda: method.attribute(peer.x, target=peer.labels, **options)

    return made


def _smoothgrad(peer: Peer) -> Attribute:
    from captum.attr import NoiseTunnel, Saliency

    method = NoiseTunnel(Saliency(peer.network))
    return lambda: method.attribute(
        peer.x,
        target=peer.labels,
        nt_type="smoothgrad",
        nt_samples=STEPS,
        nt_samples_batch_size=ROWS_AT_ONCE // len(peer.x),
        stdevs=0.15,
        abs=False,
    )


def _over_baselines(name: str, /, **options: Any) -> Callable[[Peer], Attribute]:
    def made(peer: Peer) -> Attribute:
        import captum.attr

        method = getattr(captum.attr, name)(peer.network)
        baselines = torch.rand(BASELINES, *peer.x.shape[1:])
        settings = {"target": peer.labels, "return_convergence_delta": True, **options}
        return lambda: method.attribute(peer.x, baselines, **settings)[0]

    return made


def _grad_cam(peer: Peer) -> Attribute:
    from captum.attr import LayerAttribution, LayerGradCam

    method = LayerGradCam(peer.network, peer.layer)

    def run() -> Tensor:
        maps = method.attribute(peer.x, target=peer.labels, relu_attributions=True)
        upsampled: Tensor = LayerAttribution.interpolate(maps, peer.x.shape[2:], "bilinear")
        return upsampled

    return run


def _guided_grad_cam(peer: Peer) -> Attribute:
    from captum.attr import GuidedGradCam

    method = GuidedGradCam(peer.network, peer.layer)
    return lambda: method.attribute(peer.x, target=peer.labels, interpolate_mode="bilinear")


def _occlusion(peer: Peer) -> Attribute:
    from captum.attr import Occlusion

    method = Occlusion(peer.network)
    shape = (peer.x.shape[1], WINDOW, WINDOW)
    return lambda: method.attribute(
        peer.x,
        target=peer.labels,
        sliding_window_shapes=shape,
        strides=shape,
        perturbations_per_eval=ROWS_AT_ONCE // len(peer.x),
    )


def _ablation(peer: Peer) -> Attribute:
    from captum.attr import FeatureAblation

    method = FeatureAblation(peer.network)
    return lambda: method.attribute(
        peer.x,
        target=peer.labels,
        feature_mask=peer.cells(),
        perturbations_per_eval=ROWS_AT_ONCE // len(peer.x),
    )


def _coalitions(name: str, samples: int, at_once: int) -> Callable[[Peer], Attribute]:
    def made(peer: Peer) -> Attribute:
        import captum.attr
        from captum._utils.models.linear_model import SkLearnRidge

        linear = {"interpretable_model": SkLearnRidge(alpha=1.0)} if name == "Lime" else {}
        method = getattr(captum.attr, name)(peer.network, **linear)
        features = peer.cells().expand(1, *peer.x.shape[1:]).contiguous()
        return lambda: method.attribute(
            peer.x,
            target=peer.labels,
            feature_mask=features,
            n_samples=samples,
            perturbations_per_eval=at_once,
        )

    return made


def _lrp(peer: Peer) -> Attribute:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    kinds = nn.Conv2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.Flatten
    layers = [module for module in peer.network.modules() if isinstance(module, kinds)]
    method = LRP(peer.network)

    def run() -> Tensor:
        for layer in layers:  # Captum takes the rules off again
            layer.rule = EpsilonRule(epsilon=1e-6)
        found: Tensor = method.attribute(peer.x, target=peer.labels)
        return found

    return run


def _at_layer(name: str, /, **options: Any) -> Callable[[Peer], Attribute]:
    def made(peer: Peer) -> Attribute:
        import captum.attr

        method = getattr(captum.attr, name)(peer.network, peer.layer)
        return lambda: method.attribute(peer.x, target=peer.labels, **options)

    return made


def _activation(peer: Peer) -> Attribute:
    from captum.attr import LayerActivation

    method = LayerActivation(peer.network, peer.layer)
    return lambda: method.attribute(peer.x)


def _neuron(peer: Peer) -> Attribute:
    from captum.attr import NeuronConductance

    method = NeuronConductance(peer.network, peer.layer)
    settings = {"n_steps": STEPS, "internal_batch_size": ROWS_AT_ONCE}
    return lambda: method.attribute(peer.x, (UNIT, 6, 6), target=peer.labels, **settings)


def _infidelity(peer: Peer) -> Attribute:
    from captum.attr import Saliency
    from captum.metrics import infidelity

    method = Saliency(peer.network)

    def noisy(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.03 * torch.randn_like(x)
        return noise, x - noise

    def run() -> Tensor:
        maps = method.attribute(peer.x, target=peer.labels, abs=False)
        settings = {"target": peer.labels, "n_perturb_samples": STEPS}
        found: Tensor = infidelity(
            peer.network, noisy, peer.x, maps, max_examples_per_batch=ROWS_AT_ONCE, **settings
        )
        return found

    return run


def _max_sensitivity(peer: Peer) -> Attribute:
    from captum.attr import Saliency
    from captum.metrics import sensitivity_max

    method = Saliency(peer.network)
    return lambda: sensitivity_max(
        method.attribute,
        peer.x,
        target=peer.labels,
        n_perturb_samples=STEPS,
        max_examples_per_batch=ROWS_AT_ONCE,
    )


CASES: Mapping[str, Case] = {
    "saliency": Case(_plain("Saliency")),
    "input_x_gradient": Case(_plain("InputXGradient")),
    "guided_backprop": Case(_plain("GuidedBackprop")),
    "deconvnet": Case(_plain("Deconvolution")),
    "integrated_gradients": Case(
        _plain("IntegratedGradients", n_steps=STEPS, internal_batch_size=ROWS_AT_ONCE),
        {"steps": STEPS},
    ),
    "smoothgrad": Case(_smoothgrad, {"samples": STEPS}, agrees=None),
    # Captum's multipliers of max pooling miss the difference that they are shares of.
    "deep_lift": Case(_plain("DeepLift"), agrees=None),
    "deep_lift_shap": Case(_over_baselines("DeepLiftShap"), {"draws": BASELINES}, agrees=None),
    "gradient_shap": Case(
        _over_baselines("GradientShap", n_samples=STEPS, stdevs=0.05),
        {"samples": STEPS, "draws": BASELINES},
        agrees=None,
    ),
    "expected_gradients": Case(params={"samples": STEPS, "draws": BASELINES}),
    "grad_cam": Case(_grad_cam, {"layer": LAYER}),
    "grad_cam_plus_plus": Case(params={"layer": LAYER}),
    "layer_cam": Case(params={"layer": LAYER}),
    "guided_grad_cam": Case(_guided_grad_cam, {"layer": LAYER}),
    "occlusion": Case(_occlusion, {"window": WINDOW, "stride": WINDOW, "fill": "zero"}),
    "feature_ablation": Case(_ablation, {"cell": WINDOW, "fill": "zero"}),
    "rise": Case(params={"masks": GRID * GRID}),
    "lime": Case(
        _coalitions("Lime", 2 * GRID * GRID, ROWS_AT_ONCE),
        {"cell": WINDOW, "fill": "zero", "samples": 2 * GRID * GRID},
        agrees=None,
    ),
    # The whole and the empty coalition are among Captum's samples.
    "kernel_shap": Case(
        _coalitions("KernelShap", 2 * GRID * GRID + 2, ROWS_AT_ONCE),
        {"cell": WINDOW, "fill": "zero", "samples": 2 * GRID * GRID},
        agrees=None,
    ),
    "shapley_sampling": Case(
        _coalitions("ShapleyValueSampling", 4, ROWS_AT_ONCE // 16),
        {"cell": WINDOW, "fill": "zero", "permutations": 4},
        agrees=None,
    ),
    "guided_integrated_gradients": Case(params={"steps": STEPS}),
    "blur_integrated_gradients": Case(params={"steps": STEPS}),
    "score_cam": Case(params={"layer": "net.features.2"}),
    # Captum hands a winner's share to all values that max pooling covers, and to biases none.
    "lrp": Case(_lrp, {"rule": "epsilon"}, agrees=None),
    "transformer_lrp": Case(),
    "layer_attribution": Case(_at_layer("LayerGradientXActivation"), {"layer": LAYER}),
    "neuron_attribution": Case(
        _neuron, {"layer": LAYER, "unit": [UNIT, 6, 6], "steps": STEPS}, agrees=None
    ),
    "layer_activation": Case(_activation, {"layers": [LAYER]}, agrees=None),
    "infidelity": Case(_infidelity, {"samples": STEPS}, agrees=None),
    "max_sensitivity": Case(_max_sensitivity, {"samples": STEPS}, agrees=None),
}
