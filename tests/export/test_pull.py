"""A pull brings safe files alone, whole or not at all, into a folder that holds nothing else.

The hub is a stand-in on the loopback; the client is the real library.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.hub_server import Hub, error_of, hub_command

from forty2.cli import main
from forty2.model.loading import load

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's

MODEL = Path("fused_models/mine")
ADAPTER = Path("adapters/mine/phase2_dpo")
CARD = b"---\nbase_model: owner/base\n---\n"


def pull(*words: str) -> Result:
    """Run `forty2 pull`."""
    return hub_command("pull", *words)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def left_behind(folder: Path) -> list[str]:
    """Names of hidden files and folders beside a target."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.fixture
def model(work: Path, hub: Hub) -> dict[str, bytes]:
    """A model on the hub, as me/it."""
    files = {name: data for name, data in files_in(MODEL).items() if name != "SHA256SUMS"}
    del files["fused.json"]
    hub.create("me/it", files)
    return files


@pytest.fixture
def adapter(work: Path, hub: Hub) -> dict[str, bytes]:
    """An adapter on the hub, as me/ad."""
    names = ("adapter_config.json", "adapters.safetensors")
    files = {name: (ADAPTER / name).read_bytes() for name in names} | {"README.md": CARD}
    hub.create("me/ad", files)
    return files


# --- normal ---


def test_a_model_comes_whole_and_loads(model: dict[str, bytes], hub: Hub) -> None:
    result = pull("me/it")
    assert result.exit_code == 0, result.output
    folder = Path("fused_models/it")
    assert files_in(folder) == model and not left_behind(folder) and not left_behind(folder.parent)
    assert hub.repos["me/it"].commits[-1] in result.output
    assert "next      forty2 chat fused_models/it" in result.output
    load(str(folder))


def test_an_adapter_comes_with_the_name_of_its_base(adapter: dict[str, bytes], hub: Hub) -> None:
    result = pull("me/ad")
    assert result.exit_code == 0, result.output
    assert files_in(Path("adapters/ad")) == adapter
    assert "forty2 chat owner/base --adapter adapters/ad" in result.output


def test_what_was_pushed_comes_back(work: Path, hub: Hub) -> None:
    assert CliRunner().invoke(main, ["push", "mine/sft", "me/back", "--yes"]).exit_code == 0
    assert pull("me/back", "--out", "back").exit_code == 0
    sent = Path("adapters/mine/phase1_sft")
    for name in ("adapter_config.json", "adapters.safetensors"):
        assert Path("back", name).read_bytes() == (sent / name).read_bytes()
    load(str(work / "inputs" / "model"), "back")


def test_without_a_login_public_models_come_and_private_ones_do_not(
    model: dict[str, bytes], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.create("me/secret", model, private=True)
    assert pull("me/it", "--out", "a").exit_code == 0
    assert "`hf auth login`" in error_of(pull("me/secret", "--out", "b"))
    assert not Path("b").exists()


# --- only what is safe ---


def test_pickles_code_and_other_files_stay_on_the_hub(model: dict[str, bytes], hub: Hub) -> None:
    others = ("pytorch_model.bin", "modeling.py", "onnx/model.onnx", "run.sh", "x/config.json")
    hub.create("me/it", model | dict.fromkeys(others, b"unsafe"))
    result = pull("me/it")
    assert result.exit_code == 0 and files_in(Path("fused_models/it")) == model
    for name in others:
        assert f"left out  {name}\n" in result.output
    assert hub.count(r"GET /me/it/resolve/.*unsafe|GET /me/it/resolve/.*\.(py|bin|sh)") == 0


def test_code_comes_only_when_it_is_asked_for(model: dict[str, bytes], hub: Hub) -> None:
    hub.create("me/it", model | {"modeling.py": b"x = 1\n"})
    assert pull("me/it", "--trust-remote-code").exit_code == 0
    assert Path("fused_models/it/modeling.py").read_bytes() == b"x = 1\n"


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.gguf"])
def test_weights_of_another_kind_are_refused(
    weights: str, model: dict[str, bytes], hub: Hub
) -> None:
    hub.create("me/it", {"config.json": model["config.json"], weights: b"unsafe"})
    assert f"no weights as safetensors ({weights} is none)" in error_of(pull("me/it"))
    assert not Path("fused_models/it").exists()


@pytest.mark.parametrize("file", ["../../evil.json", "/evil.json", "..\\evil.json", "a\nb.json"])
def test_a_file_name_that_escapes_the_folder_is_not_written(
    file: str, model: dict[str, bytes], work: Path, hub: Hub
) -> None:
    hub.create("me/it", model | {file: b"{}"})
    pull("me/it")
    assert not list(work.parent.parent.rglob("*evil*"))
    assert files_in(Path("fused_models/it")).keys() == model.keys()


def test_what_cannot_be_loaded_is_not_left_here(model: dict[str, bytes], hub: Hub) -> None:
    config = json.loads(model["config.json"]) | {"num_hidden_layers": 7}
    hub.create("me/it", model | {"config.json": json.dumps(config).encode()})
    message = error_of(pull("me/it"))
    assert "me/it: cannot be loaded: " in message and ".download" not in message
    assert not Path("fused_models/it").exists() and not left_behind(Path("fused_models"))


def test_a_repository_without_a_model_is_refused(work: Path, hub: Hub) -> None:
    hub.create("me/it", {"README.md": b"", "data.json": b"{}"})
    assert "holds neither a model" in error_of(pull("me/it"))


# --- what is there stays ---


def test_an_existing_folder_is_replaced_only_when_asked(model: dict[str, bytes], hub: Hub) -> None:
    assert pull("me/it").exit_code == 0
    old = Path("fused_models/it/old.txt")
    old.write_text("old", "utf-8")
    assert "replace it with --replace" in error_of(pull("me/it")) and old.exists()
    assert pull("me/it", "--replace").exit_code == 0 and not old.exists()
    assert files_in(Path("fused_models/it")) == model


@pytest.mark.parametrize("place", ["adapters/mine", "inputs", "inputs/sft.jsonl"])
def test_runs_and_other_folders_are_never_replaced(
    place: str, adapter: dict[str, bytes], hub: Hub
) -> None:
    before = sorted(map(str, Path.cwd().rglob("*")))
    error_of(pull("me/ad", "--out", place, "--replace"))
    assert sorted(map(str, Path.cwd().rglob("*"))) == before


@pytest.mark.parametrize("place", [".", "..", "/", "inputs", "inputs/sft.jsonl", "/dev/null"])
def test_a_place_that_cannot_be_written_is_refused_before_the_hub_is_asked(
    place: str, adapter: dict[str, bytes], hub: Hub
) -> None:
    assert f"{place}: " in error_of(pull("me/ad", "--out", place, "--replace"))
    assert hub.lines == []


def test_a_failed_replacement_leaves_the_old_one(model: dict[str, bytes], hub: Hub) -> None:
    assert pull("me/it").exit_code == 0
    hub.create("me/it", model | {"config.json": b"{}"})
    error_of(pull("me/it", "--replace"))
    assert files_in(Path("fused_models/it")) == model


@pytest.mark.parametrize("name", ["it", "../it", "me/..", "me/../../x", "me/.hidden", "me/-x"])
def test_an_unsafe_name_is_refused(name: str, work: Path, hub: Hub) -> None:
    assert "no name on the hub" in error_of(pull("--", name))
    assert hub.lines == []


# --- errors of the hub ---


@pytest.mark.parametrize(
    ("line", "status", "headers", "said"),
    [
        ("GET /api/models/me/it", 500, {}, "the hub failed (500)"),
        ("GET /api/models/me/it", 429, {"Retry-After": "9"}, "run the same command again in 9 s"),
        ("GET /api/models/me/it", 403, {}, "your login may not read it"),
        ("GET /api/models/me/it/tree", 500, {}, "(500)"),
        ("GET /me/it/resolve/.*/model.safetensors", 500, {}, "the hub failed (500)"),
        ("GET /me/it/resolve/.*/config.json", 403, {}, "your login may not read it"),
    ],
)
def test_an_error_of_the_hub_is_one_line_and_leaves_no_folder(
    line: str,
    status: int,
    headers: dict[str, str],
    said: str,
    model: dict[str, bytes],
    hub: Hub,
) -> None:
    hub.fail(line + ("$" if line.endswith("it") else ""), status=status, headers=headers)
    message = error_of(pull("me/it"))
    assert message.startswith("Error: me/it: ") and said in message
    assert not Path("fused_models/it").exists()


def test_a_cut_connection_is_gone_on_from(model: dict[str, bytes], hub: Hub) -> None:
    hub.fail("GET /me/it/resolve/.*/model.safetensors", cut_after=50_000)
    assert "the same command goes on" in error_of(pull("me/it"))
    assert not Path("fused_models/it").exists()
    hub.faults.clear()
    before = len(hub.lines)
    assert pull("me/it").exit_code == 0
    assert files_in(Path("fused_models/it")) == model
    again = [line for line in hub.lines[before:] if line.startswith("GET /me/it/resolve")]
    assert not [line for line in again if line.endswith("tokenizer.json")]


def test_a_model_that_is_not_there_is_one_line(work: Path, hub: Hub) -> None:
    assert "is not on the hub, or you may not see it" in error_of(pull("me/none"))
