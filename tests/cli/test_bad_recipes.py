"""Recipes and overrides that must be refused."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.bad_input import (
    FEW,
    RECIPE,
    Case,
    Cases,
    Content,
    check_process,
    check_refused,
    empty_folder,
    link,
    mutated,
    pipe,
)

from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe

CASES = Cases()
case = CASES.add


def recipe(name: str, content: Content, *says: str) -> None:
    case(f"recipe: {name}", {"recipe.yaml": content}, "recipe check recipe.yaml", *says)


def spoilt(name: str, find: str, put: str, *says: str) -> None:
    """The good recipe with one thing in it replaced."""
    assert find in RECIPE
    recipe(name, RECIPE.replace(find, put, 1), *says)


def override(name: str, value: str, *says: str) -> None:
    command = f"recipe check recipe.yaml --set {shlex.quote(value)}"
    case(f"--set: {name}", {}, command, "--set", *says)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)

recipe("missing", None, "recipe.yaml: no such recipe", "packaged ones: ")
recipe("a folder", empty_folder, "recipe.yaml: no such recipe")
recipe("a pipe", pipe, "recipe.yaml: no such recipe")
recipe("a device", link("/dev/zero"), "no such recipe")
recipe("a link to itself", link("recipe.yaml"), "no such recipe")
recipe(
    "a phase that is a list, of a bad name",
    "version: 1\nname: x\nmodel: tiny\nphases:\n  bad~:\n  - x\n",
    "recipe.yaml:5: phases.bad~: ",
)
recipe("empty", "", "recipe.yaml: a recipe is a mapping")
recipe("only a comment", "# nothing\n", "a recipe is a mapping")
recipe("a list", "- a\n- b\n", "a recipe is a mapping")
recipe("text", "train it, please", "a recipe is a mapping")
recipe("a number", "42", "a recipe is a mapping")
recipe("two documents", RECIPE + "---\n" + RECIPE, "recipe.yaml:14: not valid YAML")
recipe("not YAML", "version: 1\nname: [a\n", "recipe.yaml:3: not valid YAML")
recipe("JSON cut short", '{"version": 1, "name": ', "recipe.yaml:1: not valid YAML")
recipe("binary", bytes(range(256)), "recipe.yaml: not UTF-8", "save it as UTF-8")
recipe(
    "a number without digits",
    RECIPE + "seed: !!int _\n",
    "not valid YAML: '_' is not of the type int",
)
recipe("a truth value that is none", RECIPE + "lint: !!bool 2\n", "'2' is not of the type bool")
recipe("a text as a date", RECIPE + "name: !!timestamp x\n", "'x' is not of the type timestamp")
recipe("NUL bytes", RECIPE.encode() + b"\0\0", "recipe.yaml: not valid YAML")
recipe("UTF-16", RECIPE.encode("utf-16"), "recipe.yaml: not UTF-8")
recipe("control characters", RECIPE.replace("mine", "mi\x07ne"), "recipe.yaml: not valid YAML")
spoilt("tabs", "    objective", "\tobjective", "recipe.yaml:8: not valid YAML")
recipe(
    "10 MB",
    lambda path: path.write_bytes(b"# " * 5_000_000),
    "10,000,000 bytes is too long for a recipe",
)
recipe(
    "200 kB",
    lambda path: path.write_text("k: [" + "1," * 100_000),
    "bytes is too long for a recipe",
)
recipe("nested 20,000 deep", "a: " + "[" * 20_000, "recipe.yaml: nested too deeply")
spoilt("nested 300 deep", "tiny", "[" * 300 + "]" * 300, "recipe.yaml")
recipe("billion laughs", BOMB, "recipe.yaml:2: aliases (*name) are not allowed")
spoilt("an alias to itself", "tiny", "&a [*a]", "recipe.yaml:3: aliases (*name) are not allowed")
spoilt("an unknown alias", "tiny", "*a", "recipe.yaml:3: not valid YAML: found undefined alias")
recipe(
    "merge keys",
    RECIPE + "adapter: &a {rank: 8}\nfuse: {<<: *a}\n",
    "recipe.yaml:15: merging (<<) is not allowed; write the keys out",
)
recipe("a list as a key", RECIPE + "? [a, b]\n: 1\n", "recipe.yaml:14: a key must be text")
recipe("a laughing key", BOMB + "? *i\n: 1\n", "recipe.yaml:9: a key must be text")
recipe("a line break in a key", RECIPE + '"a\\nb\\x1b": 2\n', r":14: a\nb\x1b: unknown key")
recipe("a number as a key", RECIPE + "1: 2\n", "recipe.yaml:14: key 1 must be text")
recipe("null as a key", RECIPE + "~: 2\n", "recipe.yaml:14: key None must be text")
spoilt("runs a command", "tiny", "!!python/object/apply:os.system [id]", "recipe.yaml:3: model")
spoilt("makes an object", "tiny", "!!python/object:os.stat {}", "recipe.yaml:3: model")
spoilt("names a function", "tiny", "!!python/name:os.system", "recipe.yaml:3: not valid YAML")
spoilt("a tag unknown", "tiny", "!mine tiny", "recipe.yaml:3: not valid YAML")
spoilt("a tag unfit", "max_length: 64", "max_length: !!int many", "recipe.yaml:4: not valid YAML")
spoilt("a date that is none", "tiny", "2026-99-99", "recipe.yaml:3: not valid YAML")
spoilt("a key twice", "name: mine", "name: mine\nname: yours", "recipe.yaml:3: name is given twice")
spoilt("a phase twice", "  dpo:", "  sft:", "recipe.yaml:7: phases.sft is given twice")
spoilt(
    "a field twice", "beta: 0.1", "beta: 0.1\n    beta: 1", ":13: phases.dpo.beta is given twice"
)
spoilt("a key unknown", "max_length", "max_lenght", ":4: max_lenght: unknown key", "max_length?")
spoilt("a field unknown", "beta:", "betta:", ":12: phases.dpo.betta: unknown key", "beta?")
spoilt("a name of others", "lr: 5e-5", "learning_rate: 5e-5", "unknown key; did you mean lr?")
spoilt("no version", "version: 1\n", "", "recipe.yaml:1: version: missing")
spoilt("another version", "version: 1", "version: 2", "recipe.yaml:1: version: should be 1, not 2")
spoilt("version as text", "version: 1", "version: '1'", "recipe.yaml:1: version: should be 1")
spoilt("no model", "model: tiny\n", "", "model: missing")
spoilt("model a number", "tiny", "7", "recipe.yaml:3: model: should be text, not 7")
spoilt("model null", "tiny", "", "recipe.yaml:3: model: should be text, not None")
spoilt("name with a slash", "mine", "a/b", "recipe.yaml:2: name:", "not 'a/b'")
spoilt("name upwards", "mine", "..", "recipe.yaml:2: name:", "not '..'")
spoilt("name absolute", "mine", "/etc/passwd", "recipe.yaml:2: name:")
spoilt("name with control characters", "mine", '"a\\nb\\e[2J"', "recipe.yaml:2: name:", r"a\nb\x1b")
spoilt("name that ends a line", "mine", '"mine\\n"', "recipe.yaml:2: name:")
spoilt("name of 300 characters", "mine", "m" * 300, "recipe.yaml:2: name:")
spoilt("name in Unicode", "mine", "größe", "recipe.yaml:2: name:", "not 'größe'")
spoilt("name empty", "mine", "''", "recipe.yaml:2: name:")
spoilt("name a list", "mine", "[a]", "recipe.yaml:2: name: should be text")
spoilt("phase with a slash", "  sft:", "  s/t:", "recipe.yaml:6: phases.s/t")
spoilt("phase upwards", "  sft:", "  ..:", "recipe.yaml:6: phases")
recipe("phases missing", RECIPE.split("phases")[0], "phases: missing")
recipe("phases empty", RECIPE.split("phases")[0] + "phases: {}\n", "recipe.yaml:5: phases:")
recipe("phases null", RECIPE.split("phases")[0] + "phases:\n", "recipe.yaml:5: phases:")
recipe("phases a list", RECIPE.split("phases")[0] + "phases: [sft]\n", "recipe.yaml:5: phases:")
recipe("a phase null", RECIPE.split("  sft")[0] + "  sft:\n", "recipe.yaml:6: phases.sft")
recipe("a phase text", RECIPE.split("  sft")[0] + "  sft: it\n", "recipe.yaml:6: phases.sft")
spoilt("objective unknown", "objective: sft", "objective: ppo", ":6: phases.sft.objective: 'ppo'")
spoilt(
    "objective missing",
    "objective: sft, ",
    "",
    ":6: phases.sft.objective: missing; use one of cpo, dpo, kto, orpo, sft, simpo",
)
spoilt("objective a list", "objective: sft", "objective: [sft]", ":6: phases.sft.objective")
spoilt(
    "steps and epochs", "steps: 2, ", "steps: 2, epochs: 1, ", ":6: phases.sft.steps: give steps"
)
spoilt("neither steps nor epochs", "steps: 2, ", "", ":6: phases.sft.steps: give steps or epochs")
for name, value, says in (
    ("0", "0", "should be greater than 0"),
    ("below 0", "-2", "should be greater than 0"),
    ("in part", "2.5", "should be a whole number, not 2.5"),
    ("true", "yes", "should be a whole number, not True"),
    ("as text", "'2'", "should be a whole number, not '2'"),
    ("huge", "1" + "0" * 30, "should be"),
    ("in base 60", "1:-1", "should be"),
):
    spoilt(f"steps {name}", "steps: 2", f"steps: {value}", f":6: phases.sft.steps: {says}")
spoilt("steps of 5,000 digits", "steps: 2", "steps: 1" + "0" * 5000, "not valid YAML")
spoilt(
    "epochs endless", "steps: 2, ", "epochs: .inf, ", ":6: phases.sft.epochs: should be a finite"
)
spoilt("epochs huge", "steps: 2, ", "epochs: 1e300, ", ":6: phases.sft.epochs")
for name, value, says in (
    ("not a number", ".nan", "should be"),
    ("infinite", ".inf", "should be"),
    ("below 0", "-1e-4", "should be greater than 0"),
    ("of 1", "1.0", "should be less than 1"),
    ("a word", "fast", "should be a number, not 'fast'"),
):
    spoilt(f"lr {name}", "lr: 1e-4", f"lr: {value}", f":6: phases.sft.lr: {says}")
spoilt(
    "beta infinite", "beta: 0.1", "beta: .inf", ":12: phases.dpo.beta: should be a finite number"
)
spoilt("beta missing", "    beta: 0.1\n", "", ":7: phases.dpo.beta: missing")
spoilt("loss unknown", "beta: 0.1", "beta: 0.1\n    loss: sigmoidd", ":13: phases.dpo.loss")
spoilt(
    "loss of another phase",
    "lr: 1e-4",
    "lr: 1e-4, beta: 1",
    "sft.beta: belongs to cpo, dpo, kto, orpo and simpo, not to sft",
)
spoilt(
    "λ without a reference",
    "lr: 1e-4",
    "lr: 1e-4, kl: {weight: 0.1}",
    "sft.kl: belongs to dpo and kto, not to sft",
)
for name, value, says in (
    ("below 0", "weight: -1", "kl.weight: should be greater than or equal to 0"),
    ("missing", "kind: js", "kl.weight: missing"),
    ("of no kind", "weight: 1, kind: kl", "kl.kind: should be 'reverse', 'forward' or 'js'"),
    ("that goes nowhere", "weight: 1, schedule: cosine", "kl.to: cosine needs the weight at"),
    ("that is constant", "weight: 1, to: 2", "kl.to: a constant weight has none"),
):
    spoilt(f"λ {name}", "beta: 0.1", f"beta: 0.1\n    kl: {{{value}}}", f":13: phases.dpo.{says}")
for name, value, says in (
    ("rank: 0", "rank: 0", "rank: should be greater than 0"),
    ("rank huge", "rank: 1" + "0" * 20, "rank: should be"),
    ("scale infinite", "scale: .inf", "scale: should be"),
    ("dropout of 1", "dropout: 1.0", "dropout: should be less than 1"),
    ("keys a text", "keys: q_proj", "keys: should be"),
):
    put = f"adapter: {{{value}}}\nbenchmark:"
    spoilt(name, "benchmark:", put, f"recipe.yaml:13: adapter.{says}")
spoilt("seed below 0", "max_length: 64", "seed: -1", "recipe.yaml:4: seed: should be greater")
spoilt("seed huge", "max_length: 64", "seed: 4294967296", "recipe.yaml:4: seed: should be less")
spoilt("quantized to 3 bits", "benchmark:", "fuse: {quantize: 3}\nbenchmark:", ":13: fuse.quantize")
spoilt(
    "questions not there", "benchmark: null", "benchmark: {questions: q.json}", "q.json: no such"
)
spoilt("data not there", "chats.jsonl", "no.jsonl", ":6: phases.sft.data: no.jsonl: no such file")
spoilt("data of no user", "chats.jsonl", '"~nobody.here/x"', ":6: phases.sft.data", "no such file")
spoilt("data of 5,000 characters", "chats.jsonl", "x" * 5000, ":6: phases.sft.data", "no such file")
spoilt("data with a NUL", "chats.jsonl", '"a\\0b"', ":6: phases.sft.data", "no such file")
spoilt("data with half a surrogate", "chats.jsonl", '"\\ud800"', "recipe.yaml")
case("recipe: a name of 5,000 characters", {}, f"recipe check {'x' * 5000}", "no such recipe")
case("recipe: a near miss", {}, "recipe check forty2-sparc", "did you mean forty2-spark")
case(
    "recipe: a copy that exists", {}, "recipe copy demo recipe.yaml", "recipe.yaml: already exists"
)
case("recipe: a copy into a file", {}, "recipe copy demo recipe.yaml/x", "recipe.yaml/x: cannot be")
case("recipe: shown, but missing", {}, "recipe show nothing", "nothing: no such recipe")

override(
    "best of prompts that are not there",
    "phases.sft.best={metric: passed, direction: max}",
    "phases.sft.best: passed is the share of eval_prompts, and there are none",
)
override(
    "best of pairs where there are none",
    "phases.sft.best={metric: margin, direction: max}",
    "phases.sft.best: a phase of this objective does not measure margin; it has loss, passed",
)
override(
    "best by a metric without a direction",
    "phases.sft.best={metric: spiral_score}",
    "phases.sft.best.direction: missing",
)
override(
    "a goal without a side",
    "phases.sft.until={metric: subtlety}",
    "phases.sft.until.at_least: give at_least or at_most, one of the two",
)
override(
    "a metric that nobody defined",
    "phases.sft.best={metric: spiral, direction: max}",
    "phases.sft.best.metric: should be",
    "'spiral_score'",
)
override(
    "a goal on both sides",
    "phases.dpo.until={metric: loss, at_least: 1, at_most: 2}",
    "phases.dpo.until.at_least: give at_least or at_most, one of the two",
)
override("no such red line", "phases.dpo.red_lines.sipke=warn", "did you mean spike?")
override("no such action", "phases.dpo.red_lines.stuck=skip", "should be 'warn' or 'stop'")
override("eval prompts that are not there", "phases.sft.eval_prompts=no.json", "no such file")
case(
    "run: best of what nothing measures",
    {},
    "run recipe.yaml --run-dir run --set 'phases.sft.best={metric: loss, direction: min}'",
    "phases.sft.best: loss is measured on validation rows, and there are none; give",
)
case(
    "run: best of replies to prompts that are not there",
    {},
    "run recipe.yaml --run-dir run --set 'phases.dpo.until={metric: spiral_score, at_least: 2}'",
    "phases.dpo.until: spiral_score is measured on validation rows, and there are none; give",
)
case(
    "run: best of replies to texts",
    {"texts.jsonl": '{"text": "It rains."}\n{"text": "It snows."}\n'},
    "run recipe.yaml --run-dir run --set phases.sft.valid=texts.jsonl "
    "--set 'phases.sft.best={metric: subtlety, direction: max}'",
    "phases.sft.best: subtlety is measured on replies to the prompts of the validation rows, and",
)
case(
    "run: eval prompts without what is expected",
    {"evals.json": '{"prompts": {"a": "b"}, "expected_outputs": {}}'},
    "run recipe.yaml --run-dir run --set phases.sft.eval_prompts=evals.json",
    "evals.json: expected_outputs: ",
)
override("no value", "phases.dpo.lr", "phases.dpo.lr: write it as key.subkey=value")
override("no key", "=1", "write it as key.subkey=value")
override("an empty key", "phases..lr=1", "write it as key.subkey=value")
override("50,000 keys deep", "a" + ".a" * 50_000 + "=1", "write it as key.subkey=value")
override("a line break in a key", "phases.a\nb=1", r"phases.a\nb")
override("an unknown key", "adapter.rnak=2", "adapter.rnak: unknown key; did you mean rank?")
for name in ("alpha", "lora_alpha"):
    override(
        f"an adapter's {name}", f"adapter.{name}=16", "set scale instead: scale is alpha / rank"
    )
override("an unknown phase", "phases.kto.lr=1e-5", "phases.kto: no such phase; the recipe has sft")
override("a bad type", "phases.dpo.lr=fast", "phases.dpo.lr: should be a number")
override("below a value", "model.x=1", "model is a value, it has no keys below it")
override("below a list", "adapter.keys.0=1", "adapter.keys")
override("not YAML", "seed=[", "the value is not valid YAML")
override("a date that is none", "name=2026-99-99", "the value is not valid YAML")
override("5,000 digits", "seed=1" + "0" * 5000, "the value is not valid YAML")
override("nested deeply", "seed=" + "[" * 2000, "the value is not valid YAML")
override("an object", "name=!!python/object/apply:os.getcwd []", "name: ")
override("a list as a key", "adapter={[a]: 1}", "a key must be text")
override("laughs", "adapter={a: &a [x], b: &b [*a, *a], c: [*b, *b]}", "aliases (*name)")
override("itself", "adapter=&a [*a]", "aliases (*name)")


@pytest.mark.parametrize("one", CASES, ids=lambda one: one.name)
def test_bad_recipes_are_refused(
    one: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: None
) -> None:
    check_refused(one, good, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "name",
    [
        "recipe: billion laughs",
        "recipe: 10 MB",
    ],
)
def test_a_process_stays_small_and_ends(name: str, good: Path, tmp_path: Path) -> None:
    check_process(CASES.named(name), good, tmp_path)


@FEW
@given(text=mutated(RECIPE.encode()))
def test_any_recipe_is_read_or_refused(
    text: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(text)
    with contextlib.suppress(RecipeError):
        load_recipe(path)


@FEW
@given(key=st.sampled_from(["", "seed", "adapter.keys", "phases.dpo", "x.y"]), value=st.text())
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    with contextlib.suppress(RecipeError):
        load_recipe("demo", [f"{key}={value}"])
