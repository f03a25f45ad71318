"""A push is published whole or not at all, and holds nothing private.

The hub is a stand-in on the loopback that speaks its HTTP interface; the client is the real library.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from click.testing import CliRunner, Result
from support.hub_server import TOKEN, USER, Hub, error_of, front_matter, hub_command

from forty2.cli import main
from forty2.export.hub import check_name
from forty2.export.push import plan_push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's

RUN = Path("adapters/mine")
MODEL = Path("fused_models/mine")
SENT = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
UPLOAD, COMMIT = "PUT /upload", "POST /api/models/me/it/commit"


def push(*words: str, yes: bool = True) -> Result:
    """Run `forty2 push`."""
    return hub_command("push", *words, *(["--yes"] if yes else []))


def stored(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- normal ---


def test_a_run_is_published_in_one_commit(work: Path, hub: Hub) -> None:
    result = push("mine", "me/it")
    assert result.exit_code == 0, result.output
    repo = hub.repos["me/it"]
    assert len(repo.commits) == 1 and repo.files.keys() == SENT and not repo.private
    for name in SENT - {"README.md"}:
        assert repo.files[name] == (MODEL / name).read_bytes()
    assert b"forty2 pull me/it" in repo.files["README.md"]
    assert f"published {hub.url}/me/it" in result.output


@pytest.mark.parametrize("target", ["mine/sft", "adapters/mine/phase1_sft"])
def test_a_phase_is_published_as_its_adapter(target: str, work: Path, hub: Hub) -> None:
    assert push(target, "me/it", "--model", "owner/base").exit_code == 0
    files = hub.repos["me/it"].files
    names = {"README.md", "adapter_config.json", "adapters.safetensors", "template.json"}
    assert files.keys() == names
    assert files["adapters.safetensors"] == (RUN / "phase1_sft/adapters.safetensors").read_bytes()
    data = front_matter(files["README.md"].decode())
    assert (data.base_model, data["base_model_relation"]) == ("owner/base", "adapter")


def test_the_list_comes_first_and_a_no_sends_nothing(work: Path, hub: Hub) -> None:
    result = CliRunner().invoke(main, ["push", "mine", "me/it"], input="n\n")
    assert result.exit_code == 0 and "nothing sent" in result.output
    for name in SENT:
        assert f"  {name}\n" in result.output
    assert "to me/it, public?" in result.output and not hub.repos


def test_without_anybody_to_ask_it_is_refused(work: Path, hub: Hub) -> None:
    assert "Give --yes to send" in error_of(push("mine", "me/it", yes=False))
    assert not hub.repos


def test_a_dry_run_does_not_ask_the_hub(work: Path, hub: Hub) -> None:
    result = push("mine", "me/it", "--dry-run", yes=False)
    assert result.exit_code == 0 and "would send 7 files" in result.output
    assert hub.lines == []


def test_nothing_that_arrives_names_the_machine_or_holds_rows(work: Path, hub: Hub) -> None:
    for target, name in (("mine", "me/it"), (f"{MODEL}-8bit", "me/small"), ("mine/dpo", "me/ad")):
        assert push(target, name).exit_code == 0
    received = hub.received + b"".join(hub.uploads.values())
    received += b"".join(data for repo in hub.repos.values() for data in repo.files.values())
    assert b"tokenizer" in received
    for private in (USER, str(work), "my work", "Count to 3", "No.!!!"):
        assert private.encode() not in received, private


def test_private_is_private(work: Path, hub: Hub) -> None:
    assert push("mine", "me/it", "--private").exit_code == 0
    assert hub.repos["me/it"].private


def test_a_stored_login_is_used(
    work: Path, hub: Hub, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("login") / "token"
    place.write_text(TOKEN, "utf-8")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(place))
    assert push("mine", "me/it").exit_code == 0


def test_the_command_takes_hub_and_login_from_the_environment(work: Path, hub: Hub) -> None:
    given = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "forty2", "push", "mine", "me/it"]
    for words, code in (([], 2), (["--yes"], 0)):
        done = subprocess.run(
            [*command, *words],
            env={**os.environ, **given},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        assert "\r" not in done.stderr  # no progress bar in a pipe
    assert len(hub.repos["me/it"].commits) == 1


# --- again ---


def test_a_second_push_sends_nothing(work: Path, hub: Hub) -> None:
    push("mine", "me/it")
    before = hub.uploaded_bytes
    result = push("mine", "me/it")
    assert result.exit_code == 0 and "the hub had every file already" in result.output
    assert hub.uploaded_bytes == before and hub.count(COMMIT) == 1
    assert len(hub.repos["me/it"].commits) == 1


def test_an_existing_repository_keeps_its_other_files(work: Path, hub: Hub) -> None:
    old = {"notes.txt": b"mine", "config.json": b"{}", "model-00001-of-00002.safetensors": b"old"}
    repo = hub.create("me/it", old)
    result = push("mine", "me/it")
    assert result.exit_code == 0 and "model-00001-of-00002.safetensors, of an" in result.output
    assert repo.files.keys() == SENT | {"notes.txt"} and len(repo.commits) == 2


def test_what_was_uploaded_before_an_error_is_not_sent_again(work: Path, hub: Hub) -> None:
    hub.fail(COMMIT, status=500, times=1)
    assert "500" in error_of(push("mine", "me/it"))
    before = hub.uploaded_bytes
    assert before > 0 and hub.repos["me/it"].commits == []
    assert push("mine", "me/it").exit_code == 0
    assert hub.uploaded_bytes == before and len(hub.repos["me/it"].commits) == 1


# --- errors of the hub ---


@pytest.mark.parametrize(
    ("line", "status", "headers", "said"),
    [
        ("GET /api/models", 500, {}, "the hub failed (500); run the same command again later"),
        ("POST /api/repos/create", 403, {}, "may not write to me; use a token with write"),
        (
            "POST /api/repos/create",
            429,
            {"Retry-After": "77"},
            "run the same command again in 77 s",
        ),
        ("POST /api/models/me/it/preupload", 403, {}, "may not write to me"),
        ("POST /api/models/me/it/preupload", 429, {"Retry-After": "5"}, "(429)"),
        ("POST /api/models/me/it/preupload", 500, {}, "the hub failed (500)"),
        ("POST /me/it.git/info/lfs", 500, {}, "what was uploaded is not sent again"),
        (UPLOAD, 403, {}, "(403)"),
        (UPLOAD, 500, {}, "the hub failed (500)"),
        (COMMIT, 403, {}, "may not write to me"),
        (COMMIT, 412, {}, "was changed on the hub meanwhile"),
        (COMMIT, 429, {"Retry-After": "soon"}, "in a few minutes"),
        (COMMIT, 500, {}, "the hub has taken all files or none"),
    ],
)
def test_an_error_of_the_hub_is_one_line_and_publishes_nothing(
    line: str, status: int, headers: dict[str, str], said: str, work: Path, hub: Hub
) -> None:
    before = stored(work)
    hub.fail(line, status=status, headers=headers)
    message = error_of(push("mine", "me/it"))
    assert message.startswith("Error: me/it: ") and said in message
    assert all(repo.commits == [] for repo in hub.repos.values())
    assert stored(work) == before


def test_too_many_requests_are_waited_out_as_long_as_the_hub_says(work: Path, hub: Hub) -> None:
    hub.fail("POST /api/models/me/it/preupload", status=429, headers={"Retry-After": "7"}, times=2)
    assert push("mine", "me/it").exit_code == 0
    assert [wait for wait in hub.waits if wait >= 7] == [8.0, 8.0]


@pytest.mark.parametrize("sent", [0, 1000, 100_000])
def test_a_connection_cut_while_uploading_publishes_nothing(
    sent: int, work: Path, hub: Hub
) -> None:
    hub.fail(UPLOAD, cut_after=sent)
    message = error_of(push("mine", "me/it"))
    assert "the connection to the hub failed" in message and "nothing was published" in message
    assert hub.repos["me/it"].commits == [] and not hub.uploads
    hub.faults.clear()
    assert push("mine", "me/it").exit_code == 0
    assert len(hub.repos["me/it"].commits) == 1


def test_an_upload_that_is_cut_once_goes_on(work: Path, hub: Hub) -> None:
    hub.fail(UPLOAD, cut_after=1000, times=1)
    assert push("mine", "me/it").exit_code == 0
    assert (
        hub.repos["me/it"].files["model.safetensors"] == (MODEL / "model.safetensors").read_bytes()
    )


def test_a_commit_whose_answer_is_lost_is_not_made_twice(work: Path, hub: Hub) -> None:
    hub.fail(COMMIT, cut_after=0, after_work=True, times=1)
    assert "all files or none" in error_of(push("mine", "me/it"))
    assert len(hub.repos["me/it"].commits) == 1
    assert "had every file already" in push("mine", "me/it").output
    assert len(hub.repos["me/it"].commits) == 1


def test_a_hub_that_is_not_there_is_one_line(
    work: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the connection to the hub failed" in error_of(push("mine", "me/it"))


# --- the user's mistakes ---


def test_without_a_login_it_says_how_to_log_in(
    work: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    message = error_of(push("mine", "me/it"))
    assert "`hf auth login`" in message and "HF_TOKEN" in message and hub.lines == []


def test_a_wrong_login_is_refused_and_not_shown(
    work: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = TOKEN[::-1].replace("_fh", "x")
    monkeypatch.setenv("HF_TOKEN", wrong)
    result = push("mine", "me/it")
    assert "does not accept your login (401)" in error_of(result) and wrong not in result.output


def test_what_is_public_is_not_taken_for_private(work: Path, hub: Hub) -> None:
    repo = hub.create("me/it", {"README.md": b""})
    assert "is public" in error_of(push("mine", "me/it", "--private"))
    assert len(repo.commits) == 1


@pytest.mark.parametrize(
    ("there", "target", "what"),
    [("adapter_config.json", "mine", "an adapter"), ("config.json", "mine/sft", "a model")],
)
def test_models_and_adapters_are_not_mixed(
    there: str, target: str, what: str, work: Path, hub: Hub
) -> None:
    hub.create("me/it", {there: b"{}"})
    assert f"holds {what} already" in error_of(push(target, "me/it"))


@pytest.mark.parametrize(
    "name", ["it", "me/", "/it", "../it", "me/..", "me/a/b", "me/-it", "me/i t", "me/a..b", "-x/y"]
)
def test_a_name_that_is_none_on_the_hub_is_refused(name: str) -> None:
    with pytest.raises(ConnectionError, match="no name on the hub"):
        check_name(name)


def test_a_run_without_a_fused_model_says_how_to_make_one(work: Path, hub: Hub) -> None:
    MODEL.rename("elsewhere")
    message = error_of(push("mine", "me/it"))
    assert "`forty2 fuse`" in message and "mine/PHASE" in message
    assert push("elsewhere", "me/it").exit_code == 0


def test_a_mistyped_run_is_suggested(work: Path, hub: Hub) -> None:
    assert "did you mean adapters/mine" in error_of(push("minne", "me/it"))
    assert "no finished phase of this name" in error_of(push("adapters/mine/x", "me/it"))


def test_a_damaged_model_is_not_sent(work: Path, hub: Hub) -> None:
    (MODEL / "model.safetensors").write_bytes(b"half")
    assert "damaged" in error_of(push("mine", "me/it")) and hub.lines == []


@pytest.mark.parametrize("target", ["mine", "mine/sft"])
def test_weights_that_are_cut_short_are_not_sent_from_a_folder_without_checksums(
    target: str, work: Path, hub: Hub
) -> None:
    for folder, name in ((MODEL, "model"), (Path("adapters/mine/phase1_sft"), "adapters")):
        (folder / "SHA256SUMS").unlink(missing_ok=True)
        file = folder / f"{name}.safetensors"
        os.truncate(file, file.stat().st_size // 2)
    assert "cut short" in error_of(push(target, "me/it")) and hub.lines == []


# --- what stays ---


def test_other_files_of_the_folder_stay(work: Path, hub: Hub) -> None:
    for name in ("rows.jsonl", "optimizer.safetensors", "run.log", ".env", "code.py", "phase.json"):
        (MODEL / name).write_text("private", "utf-8")
    (MODEL / "SHA256SUMS").unlink()
    result = push("mine", "me/it")
    assert result.exit_code == 0 and hub.repos["me/it"].files.keys() == SENT
    assert "stays                rows.jsonl" in result.output


def test_a_link_out_of_the_folder_is_not_followed(work: Path, hub: Hub) -> None:
    secret = work / "secret.json"
    secret.write_text("{}", "utf-8")
    (MODEL / "generation_config.json").symlink_to(secret)
    assert "is a link that leads out" in error_of(push("mine", "me/it"))
    assert hub.lines == []


def test_an_owners_own_card_is_sent_unless_it_names_the_machine(work: Path, hub: Hub) -> None:
    (MODEL / "README.md").write_text("My own words.", "utf-8")
    result = push("mine", "me/it")
    assert "README.md is your own text" in result.output
    assert hub.repos["me/it"].files["README.md"] == b"My own words."
    (MODEL / "README.md").write_text(f"From {work}/rows.jsonl.", "utf-8")
    assert "names a path of this machine" in error_of(push("mine", "me/it"))


def test_folders_that_libraries_wrote_into_json_are_taken_out(work: Path) -> None:
    config = json.loads((MODEL / "config.json").read_text("utf-8"))
    (MODEL / "config.json").write_text(
        json.dumps(config | {"_name_or_path": str(work / "inputs" / "model")}), "utf-8"
    )
    (MODEL / "SHA256SUMS").unlink()
    (sent,) = (file for file in plan_push("mine", "me/it").files if file.name == "config.json")
    assert isinstance(sent.content, bytes) and json.loads(sent.content) == config


def test_a_peft_folder_needs_the_name_of_its_base(work: Path, hub: Hub) -> None:
    export = ["export", "peft", "mine", "--out", "peft"]
    assert CliRunner().invoke(main, export).exit_code == 0
    assert "--model OWNER/BASE" in error_of(push("peft", "me/it"))
    assert push("peft", "me/it", "--model", "owner/base").exit_code == 0
    files = hub.repos["me/it"].files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    card = files["README.md"].decode()
    assert front_matter(card).library_name == "peft"
    assert "trained by SFT on 6 rows, then DPO on 6 rows." in card and "PeftModel" in card
    assert "run" not in json.loads(files["forty2.json"]) and USER.encode() not in hub.received
