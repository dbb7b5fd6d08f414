"""The optimizers of `train.optim_g`, over a network's weights and its quantizers' steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from quantsr.quant import step_magnitudes, step_parameters

if TYPE_CHECKING:
    from quantsr.config.training import TrainOptions


def build_optimizers(net: nn.Module, train: TrainOptions) -> list[torch.optim.Optimizer]:
    """Adam or AdamW, and behind it, for ``type: Muon``, `KernelMuon` for the weights that `hidden_weights` names.

    Adam's first group are weights; quantizer steps and thresholds follow with a rate of their own and no decay. A group's
    ``lr`` is at first its ``rate``, which the options give, times its ``unit``, which calibration gives.
    """
    optim = train.optim_g
    by_muon = hidden_weights(net) if optim.type == "Muon" else []
    steps = step_parameters(net)
    others = {id(parameter) for parameter in [*steps.values(), *by_muon]}
    weights = [p for p in net.parameters() if p.requires_grad and id(p) not in others]
    groups: list[dict[str, Any]] = [{"params": weights, "rate": optim.lr, "unit": 1.0}]
    rate = optim.lr * train.step_lr_mult
    if train.step_lr == "relative":
        # LSQ's gradient scale leaves activation steps gradients of 1e-9, below Adam's usual epsilon.
        common = {"weight_decay": 0.0, "eps": 1e-15}
        for name, unit in step_magnitudes(net).items():
            groups.append({"params": [steps[name]], "rate": rate, "unit": unit, **common})
    elif steps:
        groups.append({"params": list(steps.values()), "rate": rate, "unit": 1.0, "weight_decay": 0.0})
    for group in groups:
        group["lr"] = group["rate"] * group["unit"]
    kind = torch.optim.AdamW if optim.type == "AdamW" else torch.optim.Adam
    beta1, beta2 = optim.betas
    # One fused call instead of a dozen small ones for each of several hundred tensors.
    adam = kind(groups, lr=optim.lr, betas=(beta1, beta2), weight_decay=optim.weight_decay, fused=True)
    if not by_muon:
        return [adam]
    muon = KernelMuon(by_muon, lr=optim.lr, weight_decay=optim.weight_decay)
    muon.param_groups[0].update(rate=optim.lr, unit=1.0)
    return [adam, muon]


def restore(
    optimizer: torch.optim.Optimizer, scheduler: Any, state: Mapping[str, Any], schedule: Mapping[str, Any]
) -> None:
    """Puts back the moments, the units of the rates and the place in the schedule; all else is as the present options say.

    Args:
        optimizer, scheduler: as built from the options.
        state, schedule: of the run that goes on.

    Raises:
        KeyError, ValueError: they are another network's.
    """
    present = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    scheduler.load_state_dict(dict(schedule))
    for index, (group, now) in enumerate(zip(optimizer.param_groups, present, strict=True)):
        unit, before = group["unit"], group["initial_lr"]
        initial = now["rate"] * unit
        group.update(now, unit=unit, initial_lr=initial, lr=group["lr"] * (initial / before))
        # A schedule by milestones goes on from the rate it finds, a cosine from the first one.
        scheduler._last_lr[index] *= initial / before
        scheduler.base_lrs[index] = initial


def hidden_weights(net: nn.Module) -> list[nn.Parameter]:
    """The weights of all convolutions and linear layers but the first and the last, which meet the pictures."""
    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.requires_grad]
    return [layer.weight for layer in layers[1:-1]]


class KernelMuon(torch.optim.Muon):
    """Muon for weights of any shape: a kernel (O, I, k, k) is the matrix (O, I * k * k).

    The momentum of every matrix is replaced by the nearest orthogonal one, so that all directions of a layer learn at one
    speed, and scaled to the size of Adam's steps (K. Jordan, "Muon", 2024; J. Liu et al., arXiv:2502.16982, section 2.2).
    ``torch.optim.Muon`` takes matrices only: here they share the weights' memory.

    Args:
        weights: dense in memory, contiguous or channels-last; they must stay where they are.
        lr: learning rate, on Adam's scale.
        weight_decay: decoupled, as AdamW's.

    Raises:
        ValueError: a weight lies otherwise in memory, so that no matrix can share it.
    """

    def __init__(self, weights: Sequence[nn.Parameter], *, lr: float, weight_decay: float = 0.0) -> None:
        self.weights = list(weights)
        matrices = [nn.Parameter(_matrix(weight.detach(), weight)) for weight in self.weights]
        if any(m.data_ptr() != w.data_ptr() for m, w in zip(matrices, self.weights, strict=True)):
            raise ValueError("Muon needs weights that are contiguous or channels-last in memory")
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step along the gradients of the weights, which ``closure``, if given, computes; gives its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for weight, matrix in zip(self.weights, self.matrices, strict=True):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        super().step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of the weights."""
        super().zero_grad()
        for weight in self.weights:
            if weight.grad is not None and not set_to_none:
                weight.grad.zero_()
            else:
                weight.grad = None


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """``values`` in the order in which ``weight``, (O, ...), lies in memory, as (O, n); a view where it lies so too."""
    if values.ndim == 4 and not weight.is_contiguous():
        values = values.permute(0, 2, 3, 1)
    return values.reshape(len(weight), -1)
