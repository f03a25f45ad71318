"""Models, adapters and GGUF files that must be refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from support.bad_input import (
    Case,
    Cases,
    Content,
    check_process,
    check_refused,
    config,
    cut,
    edit,
    empty_folder,
    link,
    pipe,
)

CASES = Cases()
case = CASES.add

GENERATE = "generate -m tiny -p hi --max-tokens 1"


def model(name: str, file: str, content: Content, *says: str) -> None:
    case(f"model: {name}", {f"tiny/{file}": content}, GENERATE, *says)


def other_shape(path: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
    weights["model.norm.weight"] = mx.ones(7)
    path.unlink()
    mx.save_safetensors(str(path), weights)


def one_less(path: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
    del weights["model.norm.weight"]
    path.unlink()
    mx.save_safetensors(str(path), weights)


def header(size: int) -> bytes:
    """A safetensors file whose header claims to be so long."""
    return struct.pack("<Q", size) + b"{}"


NOT_FINITE = "tiny/model.safetensors: model.norm.weight holds 1 NaN or infinite values of 32"


def spoilt(value: float) -> Content:
    def make(path: Path) -> None:
        import mlx.core as mx

        weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
        weights["model.norm.weight"][3] = value
        path.unlink()
        mx.save_safetensors(str(path), weights)

    return make


def index(file: str) -> str:
    return json.dumps({"weight_map": {"no.such.weight": file}})


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
case("model: missing", {}, "generate -m ./none -p hi", "./none: no such model; give a model folder")
case("model: a file", {}, "generate -m recipe.yaml -p hi", "recipe.yaml: no such model")
case("model: an empty folder", {"m": empty_folder}, "generate -m m -p hi", "m: no config.json")
case(
    "model: an adapter's folder",
    {"m/adapter_config.json": '{"base_model_name_or_path": "owner/base"}'},
    "generate -m m -p hi",
    "m: no config.json, so this is not a model folder but an adapter's; give its model, owner/base",
)
case("model: of no user", {}, "generate -m ~nobody.here/m -p hi", "~nobody.here/m: no such model")
case("model: 5,000 characters", {}, f"generate -m {'x' * 5000} -p hi", "no such model")
case(
    "model: GGUF unconverted",
    {},
    "generate -m model.gguf -p hi",
    "convert it first: forty2 model import",
)
model("config empty", "config.json", "", "tiny/config.json: not readable")
model("config cut short", "config.json", cut(0.5), "tiny/config.json: not readable")
model("config a pointer", "config.json", POINTER, "tiny/config.json: is a pointer of Git LFS")
model("config a page", "config.json", "<html></html>", "tiny/config.json: is a web page (HTML)")
model("config a list", "config.json", "[]", "tiny/config.json: names no model_type")
model("config not UTF-8", "config.json", b"\xff\xfe{}", "tiny/config.json: not readable")
model("config recursive", "config.json", '{"a":' * 100_000, "tiny/config.json: nested too deeply")
model("config without a type", "config.json", "{}", "tiny/config.json: names no model_type")
model(
    "type unknown",
    "config.json",
    config(model_type="gpt-9"),
    "mlx-lm does not know the architecture 'gpt-9'",
)
model("type a path", "config.json", config(model_type="../../x"), "does not know the architecture")
model("type a number", "config.json", config(model_type=7), "tiny/config.json: names no model_type")
model("type no model", "config.json", config(model_type="base"), "tiny: cannot load the model")
model("size as text", "config.json", config(hidden_size="32"), "hidden_size must be a whole number")
model(
    "no size of the vocabulary",
    "config.json",
    config(vocab_size=None),
    "tiny: cannot load the model: vocab_size must be a whole number in config.json, not None",
)
model(
    "an end as text",
    "config.json",
    config(eos_token_id="<|im_end|>"),
    "tiny/config.json: eos_token_id is '<|im_end|>', which is not a token id",
)
model(
    "generation settings a list",
    "generation_config.json",
    "[]",
    "tiny/generation_config.json: not a JSON object",
)
model("no heads", "config.json", config(num_attention_heads=0), "tiny: cannot load the model")
model("size below 0", "config.json", config(hidden_size=-32), "tiny: cannot load the model")
model("a size missing", "config.json", '{"model_type": "llama"}', "tiny: cannot load the model")
model("size huge", "config.json", config(hidden_size=10**12), "tiny: cannot load the model")
model(
    "layers huge",
    "config.json",
    config(num_hidden_layers=10**9),
    "tiny/config.json: 1,000,000,000 layers",
)
model(
    "one layer more", "config.json", config(num_hidden_layers=4), "cannot load the model", "Missing"
)
model(
    "one layer less",
    "config.json",
    config(num_hidden_layers=2),
    "cannot load the model",
    "parameters",
)
model("code of its own", "config.json", config(model_file="evil.py"), "--trust-remote-code")
model(
    "quantized, not said how", "config.json", config(quantization={}), "tiny: cannot load the model"
)
model("weights missing", "model.safetensors", None, "tiny: holds no weights (model.safetensors")
model("weights empty", "model.safetensors", "", "tiny/model.safetensors: cut short (0 bytes)")
model("weights cut short", "model.safetensors", cut(0.5), "tiny/model.safetensors: cut short: ")
model(
    "weights, a header cut short", "model.safetensors", cut(0.001), "model.safetensors: cut short ("
)
model(
    "weights, a header too long",
    "model.safetensors",
    header(2**62),
    "model.safetensors: cut short (",
)
model(
    "weights, no tensors", "model.safetensors", header(2), "tiny: cannot load the model", "Missing"
)
model("weights noise", "model.safetensors", bytes(range(256)) * 9, "model.safetensors: cut short (")
model(
    "weights a pointer",
    "model.safetensors",
    POINTER,
    "tiny/model.safetensors: is a pointer of Git LFS",
    "git lfs pull",
)
model("weights not a number", "model.safetensors", spoilt(float("nan")), NOT_FINITE)
model("weights infinite", "model.safetensors", spoilt(float("-inf")), NOT_FINITE)
case(
    "model: an index of a missing file",
    {"tiny/model.safetensors.index.json": index("model-00002-of-00002.safetensors")},
    GENERATE,
    "tiny/model-00002-of-00002.safetensors: missing",
)
case(
    "model: an index of a missing tensor",
    {"tiny/model.safetensors.index.json": index("model.safetensors")},
    GENERATE,
    "tiny/model.safetensors: does not hold no.such.weight",
)
case(
    "model: one of two files",
    {"tiny/model.safetensors": None, "tiny/model-00001-of-00002.safetensors": header(2)},
    GENERATE,
    "tiny/model-00002-of-00002.safetensors: missing",
)
case(
    "model: the same tensors twice",
    {"tiny/model-copy.safetensors": link("model.safetensors")},
    GENERATE,
    "so does model-copy.safetensors",
)
for method, title in (
    ("gptq", "quantized with GPTQ"),
    ("awq", "quantized with AWQ, but the files hold no qweight"),
    ("bitsandbytes", "quantized with bitsandbytes"),
    ("hqq", "quantized with HQQ"),
    ("quanto", "quantized with quanto"),
):
    model(
        method,
        "config.json",
        config(quantization_config={"quant_method": method}),
        title,
        "for MLX",
    )
model(
    "an activation that is not used",
    "config.json",
    config(hidden_act="gelu"),
    "tiny/config.json: hidden_act is 'gelu', which changes what the model computes",
)
model(
    "generation settings cut short",
    "generation_config.json",
    "{",
    "tiny/generation_config.json: not readable",
)
model(
    "an end that is no token",
    "generation_config.json",
    '{"eos_token_id": ["</s>"]}',
    "generation_config.json: eos_token_id is '</s>', which is not a token id",
)
model(
    "templates without a default",
    "tokenizer_config.json",
    config(chat_template=[{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]),
    "tiny: holds 2 chat templates (rag, tool_use), and none is named default",
    "chat_template.jinja",
)
model("a template in numbers", "tokenizer_config.json", config(chat_template=5), "is not text")
model("an empty template", "tokenizer_config.json", config(chat_template=" "), "chat template")
case(
    "model: a tokenizer of SentencePiece alone",
    {"tiny/tokenizer.json": None, "tiny/tokenizer.model": b"\n\x0e\n\x05<unk>"},
    GENERATE,
    "tiny: no tokenizer.json, only tokenizer.model (a SentencePiece",
    "save_pretrained",
)
model("weights of another shape", "model.safetensors", other_shape, "model.norm.weight")
model(
    "weights one less", "model.safetensors", one_less, "Missing 1 parameters", "model.norm.weight"
)
case(
    "model: a pickle",
    {"tiny/model.safetensors": None, "tiny/pytorch_model.bin": b"cos\nsystem\n"},
    GENERATE,
    "tiny: holds only weights in PyTorch's format (pytorch_model.bin)",
)
model("tokenizer missing", "tokenizer.json", None, "tokenizer.json is missing")
model("tokenizer empty", "tokenizer.json", "", "tiny/tokenizer.json: not readable")
model("tokenizer cut short", "tokenizer.json", cut(0.5), "tiny/tokenizer.json: not readable")
model("tokenizer a list", "tokenizer.json", "[]", "tiny/tokenizer.json: not a JSON object")
model("tokenizer of nothing", "tokenizer.json", "{}", "tiny/tokenizer.json: holds no tokenizer")
model(
    "tokenizer of no kind",
    "tokenizer.json",
    config(model={"type": "Abacus"}),
    "tiny: cannot load the tokenizer",
)
model(
    "tokenizer settings cut short",
    "tokenizer_config.json",
    cut(0.5),
    "tiny/tokenizer_config.json: not readable",
)
model(
    "a template that needs tools",
    "tokenizer_config.json",
    config(chat_template="{% for t in tools %}{{ t.function.name }}{% endfor %}{{ messages }}"),
    "the chat template refuses these messages: ",
    "; it needs tools, and there are none",
)
model("no chat template", "tokenizer_config.json", config(chat_template=None), "chat template")
model("a broken template", "tokenizer_config.json", config(chat_template="{% for"), "chat template")
model(
    "a failing template",
    "tokenizer_config.json",
    config(chat_template="{{ 1 / 0 }}"),
    "chat template",
)
model(
    "a template that opens files",
    "tokenizer_config.json",
    config(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "chat template",
)
case(
    "model: info of a broken one",
    {"tiny/config.json": "{"},
    "model info tiny",
    "config.json: not readable",
)

ADAPTER = f"{GENERATE} -a adapter"


def adapter(name: str, file: str, content: Content, *says: str) -> None:
    case(f"adapter: {name}", {f"adapter/{file}": content}, ADAPTER, "adapter", *says)


def half(path: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
    path.unlink()
    mx.save_safetensors(str(path), dict(sorted(weights.items())[::2]))


def first_not_finite(path: Path) -> None:
    import mlx.core as mx

    weights = dict(mx.load(str(path)))  # type: ignore[arg-type]
    name = min(weights)
    weights[name] = weights[name] * float("nan")
    path.unlink()
    mx.save_safetensors(str(path), weights)


def rank(value: Any) -> Content:
    return config(lora_parameters={"rank": value, "scale": 1.0, "dropout": 0.0})


case("adapter: missing", {}, f"{GENERATE} -a none", "none: no adapter here (adapter_config.json")
case(
    "adapter: a whole model",
    {},
    f"{GENERATE} -a tiny",
    "tiny: this is a whole model: give it as --model",
)
case(
    "adapter: a whole model and no other",
    {},
    "generate -a tiny -p hi",
    "tiny: this is a whole model: give it as --model",
)
case(
    "adapter: of no run, and no model",
    {},
    "generate -a adapter -p hi",
    "adapter does not say which model it is for: give --model",
)
case(
    "adapter: of a damaged run, and no model",
    {"done/run.json": "["},
    "generate -a done -p hi",
    "done does not say which model it is for: give --model",
)
case("model: neither it nor an adapter", {}, "generate -p hi", "Missing option '--model'")
case(
    "knowledge: of a model without a chat template",
    {"tiny/tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}'},
    "data build knowledge -m tiny --out out",
    "no chat template",
)
case(
    "knowledge: of an adapter for another model",
    {"adapter/adapter_config.json": rank(4)},
    "data build knowledge -m tiny -a adapter --out out",
    "does not fit this model",
)
case("adapter: a file", {}, f"{GENERATE} -a recipe.yaml", "recipe.yaml: no adapter here")
case("adapter: of no user", {}, f"{GENERATE} -a ~nobody.here/a", "no adapter here")
case(
    "adapter: a phase misnamed",
    {"r/phaseX/adapter_config.json": "{}"},
    f"{GENERATE} -a r",
    "r: no adapter here",
)
adapter("config missing", "adapter_config.json", None, "no adapter here")
adapter("config empty", "adapter_config.json", "", "adapter_config.json: not readable")
adapter("config cut short", "adapter_config.json", cut(0.5), "adapter_config.json: not readable")
adapter("config a list", "adapter_config.json", "[]", "does not fit this model")
adapter("config of nothing", "adapter_config.json", "{}", "num_layers is missing")
adapter(
    "kind unknown", "adapter_config.json", config(fine_tune_type="ia3"), "unknown fine_tune_type"
)
adapter("layers as text", "adapter_config.json", config(num_layers="all"), "must be a whole number")
adapter("another rank", "adapter_config.json", rank(4), "does not fit this model", "does not match")
adapter("rank as text", "adapter_config.json", rank("2"), "must be a whole number")
adapter(
    "no dropout",
    "adapter_config.json",
    config(lora_parameters={"rank": 2, "scale": 1.0}),
    "adapter_config.json: lora_parameters.dropout must be a number, not None",
)
adapter("rank below 0", "adapter_config.json", rank(-2), "does not fit this model")
adapter("rank huge", "adapter_config.json", rank(10**12), "does not fit this model")
adapter(
    "rank of 400 digits", "adapter_config.json", rank(10**400), "must be a whole number, not 10"
)
adapter(
    "scale of 400 digits",
    "adapter_config.json",
    config(lora_parameters={"rank": 2, "scale": 10**400, "dropout": 0.0}),
    "lora_parameters.scale must be a number, not 10",
)
adapter("weights missing", "adapters.safetensors", None, "adapters.safetensors is missing")
adapter(
    "keys as text",
    "adapter_config.json",
    config(lora_parameters={"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": "self_attn.q_proj"}),
    "lora_parameters.keys must be a list of names, not 'self_attn.q_proj'",
)
case(
    "adapter: of a step",
    {"adapter/adapters.safetensors": None, "adapter/0000100_adapters.safetensors": b""},
    ADAPTER,
    "is missing; 0000100_adapters.safetensors is of a step of the training: give it this name",
)
adapter("weights empty", "adapters.safetensors", "", "adapters.safetensors: cut short (0 bytes)")
adapter("weights cut short", "adapters.safetensors", cut(0.5), "adapters.safetensors: cut short: ")
adapter(
    "weights, a header too long", "adapters.safetensors", header(2**62), "adapters.safetensors: cut"
)
adapter(
    "weights of a model",
    "adapters.safetensors",
    link("../tiny/model.safetensors"),
    "does not fit this model",
)


adapter(
    "weights half", "adapters.safetensors", half, "adapters.safetensors: lacks ", "tensors that"
)
adapter(
    "weights not a number",
    "adapters.safetensors",
    first_not_finite,
    "adapters.safetensors: ",
    "NaN or infinite values",
)
adapter(
    "of PEFT",
    "adapter_config.json",
    '{"peft_type": "LORA", "r": 8, "lora_alpha": 16}',
    "adapter/adapter_model.safetensors is missing; copy it from the adapter",
)
case(
    "adapter: of PEFT, with its weights",
    {
        "adapter/adapters.safetensors": None,
        "adapter/adapter_model.safetensors": header(2),
        "adapter/adapter_config.json": '{"peft_type": "LORA"}',
    },
    ADAPTER,
    "adapter/adapter_config.json: r or lora_alpha is missing, or no number above 0",
)
adapter(
    "of an early mlx-lm",
    "adapter_config.json",
    '{"lora_layers": 2, "lora_parameters": {"rank": 2, "scale": 1.0, "dropout": 0.0}}',
    'num_layers is missing, as in adapters of early mlx-lm releases; add "num_layers": 2',
)
case(
    "logprobs: a pair beyond the context",
    {
        "tiny/config.json": config(max_position_embeddings=16),
        "pairs.jsonl": '{"prompt": "Hi", "chosen": "' + "x" * 99 + '", "rejected": "b"}',
    },
    "logprobs -m tiny -d pairs.jsonl -o out.json",
    "pairs.jsonl:1: ",
    "are more than 16, the model's context",
)
case(
    "logprobs: a pair beyond --max-length",
    {"pairs.jsonl": '{"prompt": "Hi", "chosen": "' + "x" * 99 + '", "rejected": "b"}'},
    "logprobs -m tiny -d pairs.jsonl -o out.json --max-length 9",
    "are more than 9, the limit that --max-length sets",
)
case(
    "generate: a prompt beyond the context",
    {"tiny/config.json": config(max_position_embeddings=4)},
    GENERATE,
    "the prompt and a reply: ",
    "are more than 4, the model's context",
)
case(
    "run: a row beyond the context",
    {"tiny/config.json": config(max_position_embeddings=12)},
    "run recipe.yaml --run-dir run",
    "phases.sft: ",
    "are more than 12, the model's context",
)


def gguf(name: str, content: Content, *says: str) -> None:
    case(
        f"GGUF: {name}",
        {"model.gguf": content},
        "model import model.gguf --out out",
        "model.gguf",
        *says,
    )


def counts(tensors: int, values: int) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, values)


gguf("missing", None, "cannot be read: No such file")
gguf("a folder", empty_folder, "cannot be read: Is a directory")
gguf("a pipe", pipe, "this is a pipe or a device")
gguf("empty", "", "not a GGUF file")
gguf("bad magic", edit(b"GGUF", b"GGML"), "not a GGUF file", "check the path")
gguf("magic alone", b"GGUF", "damaged or cut short", "download the file again")
gguf("of version 9", edit(struct.pack("<I", 3), struct.pack("<I", 9)), "GGUF version 9 is unknown")
gguf("cut within the names", cut(0.0005), "damaged or cut short")
gguf("cut within the weights", cut(0.9), "damaged or cut short (it ends within")
gguf("tensors without number", counts(2**63, 0), "damaged or cut short")
gguf("values without number", counts(0, 2**63), "damaged or cut short")
gguf("a name of 2⁶³ bytes", counts(0, 1) + struct.pack("<Q", 2**63), "damaged or cut short")
gguf(
    "an array of 2⁶³", counts(0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 4, 2**63), "damaged or cut"
)
gguf(
    "a line break in a name",
    counts(1, 0) + struct.pack("<Q3sIQIQ", 3, b"a\nb", 1, 32, 99, 0),
    r"tensor 'a\nb' is of unknown type 99",
)
gguf("nothing in it", counts(0, 0), "general.architecture is missing")
gguf(
    "another architecture",
    edit(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba"),
    "architecture 'mamba'",
)
case(
    "GGUF: out exists",
    {"out/mine.txt": "x"},
    "model import model.gguf --out out",
    "out: already exists",
)
case(
    "GGUF: out into a file",
    {"f": ""},
    "model import model.gguf --out f/out",
    "f/out: cannot be written",
)


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_bad_models_are_refused(
    one: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    check_refused(one, good, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "model: size huge",
        "GGUF: an array of 2⁶³",
    ],
)
def test_a_process_stays_small_and_ends(name: str, good: Path, tmp_path: Path) -> None:
    check_process(CASES.named(name), good, tmp_path)
