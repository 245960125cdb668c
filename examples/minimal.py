"""HARL in one bare loop: loader, model, LARS and the moving average, on one device.

    make beton                                              # a small generated set, in data/demo
    .venv/bin/python examples/minimal.py data/demo/train.beton --epochs 2

What `launch/pretrain.py` adds: DeepSpeed, mixed precision, checkpoints, resumption, logs, alarms.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harl_fast as hf
from harl_fast.files import check_output
from harl_fast.options import whole_number

SIZE_PX, BATCH, PEAK_LR = 64, 64, 1.0
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("container", type=Path, help="a train.beton, made by `make beton`")
    parser.add_argument("--epochs", type=whole_number(1, 10**6), default=2)
    about = "weights (default: %(default)s)"
    parser.add_argument("--out", type=Path, default="encoder.safetensors", help=about)
    return parser.parse_args()


def main() -> int:
    args = parse()
    check_output(args.out, option="--out", suffix=".safetensors")  # before minutes of training

    import torch  # takes seconds: after the command line
    from safetensors.torch import save_file

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(0)
    section = hf.ModelConfig(
        arch="resnet18",
        width=0.5,
        last_stride=1,
        projector_hidden=1024,
        projector_out=256,
        predictor_hidden=1024,
    )
    model = hf.HARL(section, hf.LossConfig(type="byol+f_loss")).to(device)
    optimizer = hf.LARS(hf.param_groups(model, weight_decay=1e-6), lr=PEAK_LR)
    target, online = hf.ema_pairs(model.target, model)

    # Two views per image. The mask's cells follow each view's box and flip; their grid is that of
    # the encoder.
    colours = (
        hf.ViewConfig(size_px=SIZE_PX, blur_p=0.5),
        hf.ViewConfig(size_px=SIZE_PX, blur_p=0.1, solarize_p=0.2),
    )
    cells = model.feature_size(SIZE_PX)
    loader = hf.BetonLoader(
        args.container,
        views=[hf.ViewGeometry(size_px=SIZE_PX, cells=cells, scale=(0.2, 1.0)) for _ in colours],
        batch_global=BATCH,
        batch_micro=BATCH,
        colour=hf.Colouring(colours, mean=MEAN, std=STD),
    )

    step, total = 0, args.epochs * loader.steps
    for epoch in range(args.epochs):
        for batch in loader:
            lr = hf.warmup_cosine(step, total=total, warmup=total / 10, peak=PEAK_LR)
            for group in optimizer.param_groups:
                group["lr"] = lr
            views = [view.to(device) for view in batch.views]  # (B, 3, S, S), normalised
            grids = [grid.to(device) for grid in batch.cells]  # (B, h, w), shares of foreground
            loss, figures = model(views, grids, alpha=1.0, beta=0.5)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            hf.ema_update(target, online, tau=hf.cosine_tau(step, total=total, start=0.99))
            step += 1
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, z_std {figures['z_std'].item():.2f}")

    save_file(
        {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()},
        args.out,
    )
    print(f"encoder: {args.out} (loads into torchvision's ResNet classes but for width and fc)")
    return 0


if __name__ == "__main__":
    hf.run_main(main)  # errors in one line, exit code 2
