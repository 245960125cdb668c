"""Entry points of torch.hub, for encoders that `make export` wrote.

    torch.hub.load(PATH, "harl_resnet50", source="local", weights=FOLDER, endpoints=True)

`harl_encoder` takes any network. Nothing is imported until an entry point is called, and neither
FFCV, numba nor DeepSpeed is needed.
"""

dependencies = ["torch", "torchvision", "safetensors", "pydantic", "yaml", "hjson"]


def harl_encoder(weights, *, endpoints=False):
    """Return the pretrained encoder in ``weights``, in eval mode, see `harl_fast.tools.hub`.

    weights: an exported folder, or anything else that the project's --ckpt takes. endpoints: return
    a dictionary of maps and features by SimCLR's names instead of the pooled features.
    """
    from harl_fast.tools.hub import load

    return load(weights, endpoints=endpoints)


def _entry(arch):
    def entry(weights, *, endpoints=False):
        from harl_fast.tools.hub import load

        return load(weights, arch=arch, endpoints=endpoints)

    about = harl_encoder.__doc__ or ""  # python -OO leaves it out
    entry.__doc__ = about + f"\n    Refuses another network than {arch}.\n    "
    return entry


harl_resnet18 = _entry("resnet18")
harl_resnet34 = _entry("resnet34")
harl_resnet50 = _entry("resnet50")
harl_resnet101 = _entry("resnet101")
harl_resnet152 = _entry("resnet152")
