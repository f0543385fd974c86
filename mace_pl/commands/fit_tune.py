"""``fit --tune N``: a run, and behind it the search of its weights; what is picked is the output."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from mace_pl.callbacks.write_run import next_steps
from mace_pl.commands.export import export_run
from mace_pl.commands.fit_order import untuned
from mace_pl.commands.tune import say, tune_run
from mace_pl.errors import UserError
from mace_pl.run import Run
from mace_pl.stages.estimate import SEARCH_STEPS


def search(command: Any) -> None:
    """Search the run that ``fit`` has left, where that is asked for, on one rank.

    Args:
        command: the command line of ``fit``, when its Trainer has ended or was not needed.

    Raises:
        UserError: nothing is preserved that could be scored, and what :func:`mace_pl.commands.tune.tune_run` says.
    """
    asked, settings = command.tuned, command.settings
    if asked is None or not asked.order or getattr(rank_zero_only, "rank", 0) != 0:
        return
    asked.end()
    run, data, judges = untuned(asked.output), settings["data"], command.config_init[str(command.subcommand)]
    names = Run.load(run).config["model"].get("domain_names") or settings["kept"]
    if not names:
        raise UserError("tune: no name is preserved that could be scored. Give some as --kept; the run is there.")
    given = {"steps": min(data["image_steps"], SEARCH_STEPS), "guidance": data["image_guidance"], "names": list(names)}
    given |= {"classifier": settings["classifier"], **{name: judges[name] for name in ("judge", "confirm_by")}}
    given |= {name: asked.written[name] for name in ("overwrite", "save_pipeline")}
    tune_run(str(run), str(asked.output), trials=asked.trials, **given)
    for form in asked.written["export"] or []:
        if form != "pipeline" or not asked.written["save_pipeline"]:
            export_run(str(asked.output), form)
    say(f"Written to {asked.output}; the run before the search: {run}")
    for line in next_steps(asked.output):
        say(line)
