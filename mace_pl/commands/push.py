"""Publish a finished run on the Hugging Face Hub: one commit with the format's files, its card and images."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from rich.table import Table

from mace_pl.callbacks.report import shown_of
from mace_pl.errors import UserError
from mace_pl.export.model_card import HERE, erased, listed
from mace_pl.files.paths import hub_id
from mace_pl.files.screen import screen
from mace_pl.run import Run

log = logging.getLogger(__name__)
FORMATS = ("pipeline", "lora", "lora_diffusers", "lora_peft")  # folders with a card
CARD, IMAGE = "README.md", "images/before_after.png"  # places in the repository
OWN = ".gitattributes"  # what the hub puts into a new repository
#: of the HTTP library, which differs between versions of huggingface_hub
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
SECTION = """
## Before and after

![The original above, the edited model below]({image})

Images of the same prompts and seeds, the original's and those of the model without {targets}. {more}
"""


def push_run(
    run: str,
    repo: str,
    format: str = "pipeline",
    images: bool = True,
    private: bool = True,
    message: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> str | None:
    """Publish a finished run on the Hugging Face Hub.

    Args:
        run: output folder of ``fit`` or ``fuse``, or a library.
        repo: the repository, as user/name; it is made where it does not exist.
        format: what is published: ``pipeline``, ``lora``, ``lora_diffusers`` or ``lora_peft``. ``export`` writes it.
        images: publish the report's before/after image too; it shows what is erased.
        private: a new repository is seen by its owner alone; an old one stays as it is.
        message: of the commit.
        overwrite: replace what the repository holds; its history keeps it.
        dry_run: show what would be sent, and send nothing.

    Returns:
        Address of the commit; None where nothing was sent.

    Raises:
        UserError: no run there, a format that was not exported, a repository that holds files or that is no name of
            one, no right to write, or a hub that cannot be reached.
    """
    check_name(repo)
    loaded = Run.load(run)
    files = files_of(loaded, format, images)
    card = published_card(files[CARD].read_text(encoding="utf-8"), repo, loaded, IMAGE in files)
    if dry_run:
        show(files, card, repo)
        return None
    api = HfApi()
    added = [CommitOperationAdd(name, file if name != CARD else card.encode()) for name, file in files.items()]
    with explained(repo, api.endpoint):
        old = []
        if api.repo_exists(repo):
            old = [file for file in api.list_repo_files(repo) if file != OWN]
        if old and not overwrite:
            raise UserError(
                f"repo={repo} holds {len(old)} files already, as {old[0]}. Choose another --repo, or replace them with "
                f"--overwrite true."
            )
        api.create_repo(repo, private=private, exist_ok=True)
        gone = [CommitOperationDelete(file) for file in old if file not in files]
        said = message or f"Erase {listed(targets_of(loaded))}"
        return str(api.create_commit(repo, [*added, *gone], commit_message=said).commit_url)


def targets_of(run: Run) -> list[str]:
    """What a run erases, with strengths."""
    return erased(run.concepts, run.fused.weights if run.fused else None)


def check_name(repo: str) -> None:
    """Refuse what the hub refuses, before it is asked.

    Raises:
        UserError: not two parts, or none that the hub takes.
    """
    wrong = ""
    try:
        hf_hub_url(repo, CARD)  # of the library's public functions one that checks a name and asks nobody
    except HFValidationError as error:
        wrong = f" ({error})"
    if wrong or hub_id(repo) is None:
        raise UserError(f"repo={repo} is no name of a repository: write user/name.{wrong}")


def files_of(run: Run, format: str, images: bool) -> dict[str, Path]:
    """Files by their place in the repository.

    Raises:
        UserError: the format is none of a folder with a card, or is not in the run.
    """
    if format not in FORMATS:
        raise UserError(f"format={format} must be one of {', '.join(FORMATS)}: folders with a model card.")
    folder = run.written(format)
    found = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    files = {file.relative_to(folder).as_posix(): file for file in found}
    shown = run.report / "before_after.png"
    if images and not shown.is_file():
        log.info(f"images: no image is sent, as {run.folder} has no report; a change of a library writes none.")
    return files | ({IMAGE: shown} if images and shown.is_file() else {})


def published_card(text: str, repo: str, run: Run, image: bool) -> str:
    """The card of an export, which loads from the repository, and shows the images where they are published."""
    card = ModelCard(text.replace(HERE, repo), ignore_metadata_errors=True)
    if image:
        before, limits, after = card.text.rpartition("## Limits")
        known = json.loads(run.metrics.read_text(encoding="utf-8")) if run.metrics.is_file() else {}
        caption = SECTION.format(
            image=IMAGE, targets=listed(targets_of(run)), more=shown_of(len(known.get("prompts", [])))
        )
        card.text = f"{before}{caption.strip()}\n\n{limits}{after}"
    return str(card)


def show(files: Mapping[str, Path], card: str, repo: str) -> None:
    """What would be sent."""
    table = Table("file", "bytes", title=f"Would be sent to {repo}")
    sizes = {name: len(card.encode()) if name == CARD else file.stat().st_size for name, file in files.items()}
    for name, size in sizes.items():
        table.add_row(name, f"{size:,}")
    table.add_row(f"{len(sizes)} files", f"{sum(sizes.values()):,}")
    console = screen()
    console.print(table)
    console.print(card, highlight=False, soft_wrap=True)


@contextmanager
def explained(repo: str, endpoint: str) -> Iterator[None]:
    """Errors of the hub in one line that says what to do."""
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"repo={repo} is no name of a repository: write user/name. ({error})") from error
    except LocalTokenNotFoundError as error:
        raise UserError(f"repo={repo}: nobody is logged in. {LOG_IN}") from error
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set, so nothing is sent. Unset it.") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        what = {401: f"the token is not known. {LOG_IN}", 403: f"the token may not write there. {LOG_IN}"}
        said = what.get(code, f"the hub answered {code}: {error.server_message or error}")
        raise UserError(f"repo={repo}: {said}") from error
    except HTTP_ERROR as error:
        raise UserError(f"repo={repo}: {endpoint} cannot be reached ({error}). Try again later.") from error
