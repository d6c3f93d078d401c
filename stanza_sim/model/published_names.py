"""Which module a published name of a model means: torchvision's, timm's, or torchvision's twin of timm's.

A twin has the same layers as timm's model. What torchvision's models drop by chance and timm's do not unless told so
(stochastic depth) is left out when their work is recorded (`extract.module_work`).
"""

from __future__ import annotations

import re

from stanza_sim.base.errors import InputError
from stanza_sim.base.tables import shortened
from stanza_sim.model.shipped import Scalar, Source

FACTORIES = ("torchvision", "timm", "torchvision twin")

_NAME = re.compile(r"\w[\w-]*(\.\w+)?", re.ASCII)
_TWINS = {
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
    "mnasnet_050": "mnasnet0_5",
    "mnasnet_075": "mnasnet0_75",
    "mnasnet_100": "mnasnet1_0",
    "mnasnet_b1": "mnasnet1_0",
    "mnasnet_140": "mnasnet1_3",
    "efficientnetv2_s": "efficientnet_v2_s",
    "efficientnetv2_m": "efficientnet_v2_m",
    "efficientnetv2_l": "efficientnet_v2_l",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d",
}
_SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l", "huge": "h"}
_REGNET = {
    "002": "", "004": "400mf", "006": "", "008": "800mf", "016": "1_6gf", "032": "3_2gf", "064": "", "080": "8gf",
    "120": "", "160": "16gf", "320": "32gf", "1280": "128gf",
}  # fmt: skip
_NO_AUXILIARY: dict[str, dict[str, Scalar]] = {
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "googlenet": {"aux_logits": False, "init_weights": False},
}


def twin_of(name: str) -> str | None:
    """Return the name of torchvision's model of the layers of timm's `name`, if the names tell one.

    timm's tags (`tf_`, `tv_`, `_in1k`, `.a1_in1k`) say how weights were trained and are ignored. Whether torchvision
    has a model of the name is not checked.
    """
    plain = re.sub(r"^(tf|tv)_", "", name.lower().partition(".")[0])
    plain = re.sub(r"_(in1k|in21k|in22k|22k|1k)$", "", plain)
    if plain in _TWINS:
        return _TWINS[plain]
    if found := re.fullmatch(r"(?:vit|deit)(?:3)?_(base|large|huge)_patch(\d+)(?:_\d+)?", plain):
        return f"vit_{_SIZES[found[1]]}_{found[2]}"
    if found := re.fullmatch(r"swin(v2|_v2)?_(tiny|small|base)(?:_patch4)?(?:_window\d+)?(?:_\d+)?", plain):
        return f"swin_{'v2_' if found[1] else ''}{_SIZES[found[2]]}"
    if found := re.fullmatch(r"regnet([xy])_(\d{3,4})", plain):
        size = _REGNET.get(found[2])
        return f"regnet_{found[1]}_{size}" if size else None
    if re.fullmatch(
        r"(vgg\d+(_bn)?|resnet\d+|densenet\d+|wide_resnet\d+_2|efficientnet_b\d|inception_v3|convnext_\w+|alexnet"
        r"|squeezenet\d_\d|googlenet|mobilenet_v[23]\w*|mnasnet\d_\d+|shufflenet_v2_x\d_\d|vit_[blh]_\d+|swin_\w+"
        r"|regnet_[xy]_\w+|efficientnet_v2_\w|maxvit_t|resnext\d+_\d+x\d+d)",
        plain,
    ):
        return plain
    return None


def source_of(name: str, factory: str, image: int) -> Source:
    """Return what builds the model of a published name: `factory` is one of `FACTORIES`, `image` the side in pixels.

    Auxiliary classifiers are left out. Raises `InputError` for another factory, a name without a twin, and what is no
    name: a file of rows is data, and must not lead to another attribute of a package, or to a model hub.
    """
    shape = (3, image, image)
    if not _NAME.fullmatch(name) or (factory == "torchvision" and "." in name):
        hint = "a published name is letters, digits, _ and -, and timm's may end in a tag: resnet50.a1_in1k"
        raise InputError(f"{shortened(name, 40)!r} is no name of a model", hint=hint)
    match factory:
        case "torchvision":
            return _torchvision(name, shape)
        case "timm":
            return Source(factory="timm:create_model", input_shape=shape, factory_kwargs={"model_name": name})
        case "torchvision twin":
            twin = twin_of(name)
            if twin is None:
                raise InputError(f"torchvision has no model like timm's {name!r}")
            return _torchvision(twin, shape)
        case _:
            raise InputError(f"factory is {factory!r}", hint=f"it must be one of {', '.join(FACTORIES)}")


def _torchvision(name: str, shape: tuple[int, ...]) -> Source:
    kwargs = dict(_NO_AUXILIARY.get(name, {}))
    return Source(factory=f"torchvision.models:{name}", input_shape=shape, factory_kwargs=kwargs)
