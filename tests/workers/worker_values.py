"""Values of `engine.api` with every field set."""

import math
import random

from interpret_pictures.options import Rendering
from interpret_server.engine.api import (
    Array,
    AuxInfo,
    Call,
    InputInfo,
    LayerInfo,
    ModelInfo,
    ModelRoleInfo,
    PluginInfo,
    Prediction,
    Preview,
    Progress,
    Provenance,
    Result,
    ResultField,
    RowWarning,
    SecondModel,
    Target,
    Verification,
)
from interpret_server.models.manifest import InputSpec, Manifest, OutputSpec

_PNG = b"\x89PNG\r\n\x1a\n"


def array(shape: tuple[int, ...], dtype: str = "float32", item: int = 4, seed: int = 0) -> Array:
    return Array(dtype, shape, random.Random(seed).randbytes(math.prod(shape) * item))


DIRECTION = Target("direction", (), "features.3", array((2, 5), "float64", 8))

CALL = Call(
    model="net@2",
    plugin="pgd",
    params='{"epsilon": 0.03}',
    inputs=array((2, 3, 4)),
    targets=(Target("class", (3,)), Target("neuron", (1, 2, 3), "features.0"), DIRECTION),
    seeds=(0, 2**64 - 1),
    tensors={"upper": array((2, 3)), "lower": array((2, 3)), "empty": Array("bool", (0, 3), b"")},
    models={"judge": "net@1", "": "käse"},
    render=Rendering(styles=("overlay", "top_k"), alpha=0.25, smoothing=0, colors="viridis"),
    half=True,
    previews=True,
    progress=False,
    timeout=0.1,
    client="somebody",
    priority=-1,
    alone=True,
)

PROGRESS = Progress(3, 40)

PREVIEW = Preview(
    done=7,
    total=9,
    tensors={"images": array((1, 3, 2, 2), "bfloat16", 2)},
    pictures={"images": (_PNG, b"")},
)

PROVENANCE = Provenance(
    model="net@2",
    model_sha256="0" * 64,
    model_version="17",
    plugin="pgd",
    plugin_version="1.2",
    server_version="0.3",
    params='{"steps": 40}',
    targets=(DIRECTION, Target("layer", (), "")),
    seeds=(2**64 - 1, 1),
    device="cuda:1",
    precision="float32",
    queue_seconds=0.125,
    run_seconds=1e-9,
    batch_rows=64,
    models=(SecondModel("judge", "net@1", "1" * 64, "16"), SecondModel("", "", "", "")),
)

RESULT = Result(
    tensors={"adversarial": array((2, 3), "float16", 2), "success": Array("bool", (2,), b"\1\0")},
    metrics={"norm": (0.1, math.inf), "lowest": (-math.inf, -0.0), "none": ()},
    before=(
        Prediction((2, 0), (0.75, 0.25), (1e300, -5e-324), ("käse", "")),
        Prediction((), (), ()),
    ),
    after=(Prediction((1,), (1.0,), (0.5,)),),
    warnings=(RowWarning("rows 0 and 1 did not converge", (0, 1)), RowWarning("slow", ())),
    pictures={"adversarial": (_PNG, _PNG + b"2"), "none": ()},
    provenance=PROVENANCE,
)

MANIFEST = Manifest(
    format="onnx",
    version="7",
    inputs=(
        InputSpec(
            name="image",
            shape=(3, None, 224),
            dtype="uint8",
            kind="values",
            embedding="emb",
            default=0.1,
            example=(3, 2, 224),
            layout="CHW",
            bounds=(0.0, 255.0),
            mean=(0.485, 0.456, 0.406),
            std=0.1,
            color="BGR",
            resize=256,
            crop=(224, 224),
        ),
        InputSpec(name="mask", dtype="int64", kind="integers"),
    ),
    output=OutputSpec(name="out", index=1, kind="log_probabilities", classes=1000),
    labels=("Hund", "猫"),
    straight_through=True,
    max_batch=8,
)

MODEL = ModelInfo(
    name="net@2",
    version="7",
    format="onnx",
    form="graph",
    form_reason="because",
    sha256="f" * 64,
    size=2**40,
    device="cpu",
    precision="float32",
    input_name="image",
    output_name="out",
    input_shape=(3, -1, 224),
    input_dtype="float32",
    input_layout="CHW",
    bounds=(-math.inf, 1e-7),
    classes=2,
    labels=("Hund", "猫"),
    logits_from="log_softmax",
    layers=(LayerInfo("features.0", "conv", (64, -1, 112)), LayerInfo("out", "linear", ())),
    capabilities=frozenset({"gradients", "bounds"}),
    lacking={"layers": "the archive itself runs"},
    verification=Verification("onnxruntime", math.nan, math.inf, (1, 3), 12),
    notes=('"quoted"\n', ""),
    manifest=MANIFEST,
    max_batch=8,
    inputs=(
        InputInfo(
            "image", "values", (3, -1, 224), "float32", "CHW", (0.0, 1.0), 5, True, ("Höhe", "")
        ),
        InputInfo("mask", "integers", (), "int64"),
    ),
    explained_shape=(3, -1, 224),
    files=("net.data", "ä"),
)

PLUGIN = PluginInfo(
    name="pgd",
    kind="attack",
    api=1,
    version="1.2",
    distribution="interpret-server",
    summary="Projected gradient descent.",
    description="Projected gradient descent.\n\nTowards deep learning models …",
    requires=frozenset({"gradients"}),
    rows="independent",
    inputs="required",
    target_kinds=frozenset({"class", "neuron"}),
    schema={
        "type": "object",
        "properties": {"epsilon": {"exclusiveMinimum": 0, "default": 0.1, "maximum": math.inf}},
        "seed": 2**64 - 1,
        "none": None,
        "list": [1, 1.0, True, "x", {}],
    },
    fields=(ResultField("adversarial", "image", "what to send"),),
    tensors=(AuxInfo("lower", "lower bounds", True, False), AuxInfo("mask", "", False, True)),
    models=(ModelRoleInfo("judge", "who judges", frozenset({"gradient"}), True, False, "any"),),
)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The data cut short, with other bits, or with bytes less or more."""
    wrong = bytearray(data)
    match chance.randrange(4):
        case 0:
            del wrong[chance.randrange(len(wrong)) :]
        case 1:
            for _ in range(chance.randint(1, 8)):
                wrong[chance.randrange(len(wrong))] ^= 1 << chance.randrange(8)
        case 2:
            start = chance.randrange(len(wrong))
            del wrong[start : start + chance.randint(1, 20)]
        case _:
            start = chance.randrange(len(wrong))
            wrong[start:start] = chance.randbytes(chance.randint(1, 20))
    return bytes(wrong)
