"""The goldens of what surrounds an update: learning-rate schedules, parameter groups with rates of their own, averages, Muon.

PyTorch's own schedulers and optimizers are called; the few formulas written out here say where they come from.
"""

from __future__ import annotations

import inspect
import math

import torch
import torch.optim._muon
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from golden_file import Golden


def optimizer(name: str) -> Golden:
    return Golden(f"optimizer_{name}", {"optimizer": name, "cases": {}})


def schedules() -> Golden:
    """The learning rate of every step: value.rates [steps].

    Warmup LinearLR, then CosineAnnealingLR with eta_min; or ConstantLR and LinearLR for warmup-stable-decay. PyTorch has
    no 1 - sqrt: that is Hägele et al. 2024, eq. 1, through LambdaLR.
    """
    golden = optimizer("schedules")
    cases = {
        "cosine": {"steps": 40, "rise": 0, "fall": 0, "floor": 0.0, "shape": ""},
        "cosine_with_floor": {"steps": 40, "rise": 4, "fall": 0, "floor": 0.1, "shape": ""},
        "linear": {"steps": 50, "rise": 5, "fall": 10, "floor": 0.0, "shape": "linear"},
        "linear_with_floor": {"steps": 30, "rise": 3, "fall": 12, "floor": 0.05, "shape": "linear"},
        "1-sqrt": {"steps": 50, "rise": 5, "fall": 10, "floor": 0.0, "shape": "1-sqrt"},
        "1-sqrt_from_the_warmup_on": {"steps": 20, "rise": 5, "fall": 15, "floor": 0.2, "shape": "1-sqrt"},
    }
    peak = 2e-3
    for case, settings in cases.items():
        golden.config["cases"][case] = {**settings, "peak": peak}
        steps, rise, fall, floor = (settings[key] for key in ["steps", "rise", "fall", "floor"])
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        parts, ends = [], []
        if rise:
            parts.append(schedulers.LinearLR(sgd, start_factor=1 / rise, total_iters=rise - 1))
            ends.append(rise)
        if not fall:
            parts.append(schedulers.CosineAnnealingLR(sgd, T_max=steps - rise, eta_min=floor * peak))
        else:
            if steps - fall > rise:
                parts.append(schedulers.ConstantLR(sgd, factor=1.0))
                ends.append(steps - fall)
            if settings["shape"] == "linear":
                parts.append(schedulers.LinearLR(sgd, start_factor=1.0, end_factor=floor, total_iters=fall))
            else:
                shape = lambda step: floor + (1 - floor) * (1 - math.sqrt(step / fall))  # noqa: E731
                parts.append(schedulers.LambdaLR(sgd, shape))
        scheduler = schedulers.SequentialLR(sgd, parts, ends) if ends else parts[0]
        rates = []
        for _ in range(steps):
            rates.append(sgd.param_groups[0]["lr"])
            sgd.step()
            scheduler.step()
        golden.store_result(f"{case}/value.rates", torch.tensor(rates, dtype=torch.float64))
    return golden


def layer_factor(name: str, blocks: dict[str, int], decays: dict[str, float]) -> float:
    """BEiT's and DINOv2's rule: 0 for what comes before the blocks, l + 1 for block l, L + 1 for what comes after them."""
    module, *parts = name.split(".")
    if module not in decays:
        return 1.0
    last = blocks[module] + 1
    if parts[0] == "blocks":
        layer = int(parts[1]) + 1
    else:
        layer = last if parts[0] in ("final_norm", "head") else 0
    return decays[module] ** (last - layer)


def groups() -> Golden:
    """AdamW with a group for each parameter, after clip_grad_norm_, under a cosine with warmup and a floor.

    Parameters [n] and gradients [steps,n] by name; values after each step, parameters [steps,n]. A parameter whose rate is
    0 in the settings is frozen: it takes no part.
    """
    golden = optimizer("groups")
    steps, rise, peak, floor = 8, 2, 2e-3, 0.1
    layer_decay, blocks = {"vision": 0.75, "language": 0.9}, {"vision": 3, "language": 1}
    # Name, size, whether it is a matrix, peak rate before layers, decay.
    table = [
        ("vision.patch_embed.weight", 12, True, 2e-4 * 0.2, 0.05),
        ("vision.position", 5, False, 2e-4, 0.0),
        ("vision.blocks.0.attention.qkv.weight", 9, True, 2e-4, 0.05),
        ("vision.blocks.0.norm1.weight", 3, False, 2e-4, 0.0),
        ("vision.blocks.1.mlp.fc1.weight", 18, True, 2e-4, 0.1),
        ("vision.blocks.1.mlp.fc1.bias", 7, False, 2e-4, 0.0),
        ("vision.blocks.2.attention.out.weight", 10, True, 0.0, 0.0),
        ("vision.final_norm.weight", 4, False, 2e-4, 0.0),
        ("connector.fc1.weight", 16, True, 4e-3, 0.05),
        ("connector.fc1.bias", 4, False, 4e-3, 0.0),
        ("language.embedding", 21, False, 2e-3, 0.02),
        ("language.blocks.0.attention.qkv.weight", 8, True, 2e-3, 0.05),
        ("language.final_norm.weight", 2, False, 2e-3, 0.0),
    ]
    settings = {
        "steps": steps,
        "rise": rise,
        "peak": peak,
        "floor": floor,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "max_norm": 1.0,
        "layer_decay": layer_decay,
        "parameters": [[name, size, is_matrix] for name, size, is_matrix, *_ in table],
    }
    golden.config["cases"]["layers"] = settings
    parameters, param_groups = {}, []
    for name, size, _, rate, decay in table:
        start, gradients = golden.normal(size), golden.normal(steps, size)
        golden.store_exact(f"layers/input.{name}", start)
        golden.store_exact(f"layers/input.gradient.{name}", gradients)
        parameters[name] = (torch.nn.Parameter(start.clone()), gradients)
        if rate:
            rate *= layer_factor(name, blocks, layer_decay)
            param_groups.append({"params": [parameters[name][0]], "lr": rate, "weight_decay": decay})
    adamw = torch.optim.AdamW(param_groups, betas=tuple(settings["betas"]), eps=settings["eps"])

    def height(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        part = (step - rise) / (steps - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * part))

    scheduler = schedulers.LambdaLR(adamw, height)
    trained = [group["params"][0] for group in param_groups]
    history: dict[str, list[torch.Tensor]] = {name: [] for name in parameters}
    for step in range(steps):
        for parameter, gradients in parameters.values():
            parameter.grad = gradients[step].clone()
        torch.nn.utils.clip_grad_norm_(trained, settings["max_norm"])
        adamw.step()
        scheduler.step()
        for name, (parameter, _) in parameters.items():
            history[name].append(parameter.detach().clone())
    for name, values in history.items():
        golden.store_result(f"layers/value.{name}", torch.stack(values))
    return golden


def ema() -> Golden:
    """torch.optim.swa_utils.AveragedModel with an exponential moving average beside AdamW.

    The first update of an AveragedModel copies: it is made before the first step, as the average begins as the parameters.
    Parameters [n] and gradients [steps,n]; values after each step, parameters and averages [steps,n].
    """
    golden = optimizer("ema")
    for case, decay in [("fast", 0.9), ("slow", 0.999)]:
        steps = 4
        settings = {"steps": steps, "rate": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "ema_decay": decay}
        golden.config["cases"][case] = settings
        model = torch.nn.ParameterDict()
        gradients = {}
        for name, size in [("decayed", 19), ("plain", 5)]:
            start, gradients[name] = golden.normal(size), golden.normal(steps, size)
            golden.store_exact(f"{case}/input.{name}", start)
            golden.store_exact(f"{case}/input.{name}_gradients", gradients[name])
            model[name] = torch.nn.Parameter(start.clone())
        adamw = torch.optim.AdamW(model.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        average.update_parameters(model)
        history: dict[str, list[torch.Tensor]] = {}
        for step in range(steps):
            for name, parameter in model.items():
                parameter.grad = gradients[name][step].clone()
            adamw.step()
            average.update_parameters(model)
            for name in gradients:
                history.setdefault(name, []).append(model[name].detach().clone())
                history.setdefault(f"{name}_average", []).append(average.module[name].detach().clone())
        for name, values in history.items():
            golden.store_result(f"{case}/value.{name}", torch.stack(values))
    return golden


def muon() -> Golden:
    """torch.optim.Muon for matrices beside AdamW for a vector, and its Newton-Schulz steps alone.

    PyTorch casts what it orthogonalises to bf16. Here that cast is left out, so that everything is f64: what rounds to
    bf16, and where, is each implementation's own. `orthogonal.<name>` is that of `input.<name>` alone.
    """
    golden = optimizer("muon")
    source = inspect.getsource(torch.optim._muon._zeropower_via_newtonschulz)
    cast = "grad.to(dtype=torch.bfloat16, copy=True)"
    assert source.count(cast) == 1, "PyTorch has changed where it casts"
    scope = dict(vars(torch.optim._muon))
    exec(source.replace(cast, "grad.clone()"), scope)  # noqa: S102
    torch.optim._muon._zeropower_via_newtonschulz = scope["_zeropower_via_newtonschulz"]
    steps, shapes = 3, {"wide": (6, 20), "tall": (24, 7), "square": (9, 9)}
    settings = {
        "steps": steps,
        "rate": 2e-2,
        "weight_decay": 0.1,
        "momentum": 0.95,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
    }
    golden.config["cases"]["update"] = settings
    parameters, gradients = {}, {}
    for name, shape in shapes.items():
        start, gradients[name] = golden.normal(*shape), golden.normal(steps, *shape)
        golden.store_exact(f"update/input.{name}", start)
        golden.store_exact(f"update/input.{name}_gradients", gradients[name])
        parameters[name] = torch.nn.Parameter(start.clone())
    optimizer_ = torch.optim.Muon(
        parameters.values(),
        lr=settings["rate"],
        weight_decay=settings["weight_decay"],
        momentum=settings["momentum"],
        adjust_lr_fn="match_rms_adamw",
    )
    history: dict[str, list[torch.Tensor]] = {}
    for step in range(steps):
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        optimizer_.step()
        for name, parameter in parameters.items():
            buffer = optimizer_.state[parameter]["momentum_buffer"]
            history.setdefault(name, []).append(parameter.detach().clone())
            history.setdefault(f"{name}_momentum", []).append(buffer.clone())
    for name, values in history.items():
        golden.store_result(f"update/value.{name}", torch.stack(values))
    for name, shape in shapes.items():
        golden.config["cases"][f"orthogonal_{name}"] = {"shape": list(shape)}
        u = golden.normal(*shape)
        golden.store_exact(f"orthogonal_{name}/input.u", u)
        x = torch.optim._muon._zeropower_via_newtonschulz(u, (3.4445, -4.7750, 2.0315), 5, 1e-7)
        golden.store_result(f"orthogonal_{name}/value.x", x)
    return golden


OPTIMIZERS = [schedules, groups, ema, muon]
