"""Ways to ask for an erased target: hidden prompts by hand, the optimised tokens against what they stand for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from support.families import family
from support.finished import changes, finished_run
from support.runs import exit_message, naming
from support.seeds import seeded
from support.tolerances import EXPLAINED, FLOAT32_PASS, above, close

from mace_pl.cli import erase_main
from mace_pl.data.attack_prompts import AttackPrompts
from mace_pl.data.hidden_prompts import cased, hidden_prompts, misspelled, punctuated
from mace_pl.evaluation.attacks.registry import ATTACKS
from mace_pl.evaluation.clip import ClipClassifier
from mace_pl.evaluation.token_attack import diffusion_loss, encode_attacked, optimise_tokens
from mace_pl.models.text_encoding import encode_both, encode_prompts
from mace_pl.modules.attack import warn_of_unerased


def test_hidden_prompts_by_hand() -> None:
    assert misspelled("ship") == ["shp", "sihp", "shhip"]
    assert misspelled("police officer") == ["police offcer", "police ofifcer", "police offficer"]
    assert punctuated("ship") == ["s.h.i.p", "s-h-i-p", "sh_ip", "*ship*"]
    assert cased("ship") == ["SHIP", "Ship", "sHiP"]
    found = hidden_prompts("ship", "art of a {}", ["boat"], ["a thing with a hull"])
    assert found["plain"] == ["art of a ship"] and found["synonym"] == ["art of a boat"]
    assert found["description"] == ["a thing with a hull"]
    assert all("ship" in prompt for prompt in found["sentence"])
    assert "synonym" not in hidden_prompts("ship", "{}")


def test_batches_hold_every_row_once() -> None:
    data = AttackPrompts(["ship", "dog"], ["ship"], {"ship": ["boat"]}, seeds=3, trials=2, batch_size=4)
    batches = data.batches()
    rows = [(b["kind"], p, s) for b in batches for p, s in zip(b["prompt"], b["seed"], strict=True)]
    prompts = sum(len(found) for found in data.prompts["ship"].values())
    assert len(rows) == len(set(rows)) == 3 * prompts + 2
    assert max(len(b["prompt"]) for b in batches) <= 4
    assert [b["seed"] for b in batches if b["kind"] == "free_tokens"] == [[0], [1]]
    together = AttackPrompts(["ship", "dog"], ["ship"], attacks=["noise"], trials=3, trials_at_once=2).batches()
    assert [(b["seed"], len(b["prompt"])) for b in together if b["kind"] == "noise"] == [([0, 1], 2), ([2], 1)]


@pytest.fixture(scope="module")
def pipeline(toy_pipeline: Path) -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(toy_pipeline, safety_checker=None)
    for part in (loaded.unet, loaded.vae, loaded.text_encoder):
        part.requires_grad_(False).eval()
    return loaded


def test_free_tokens_that_are_words_are_these_words(pipeline: StableDiffusionPipeline) -> None:
    ids = pipeline.tokenizer("art of", add_special_tokens=False).input_ids
    free = pipeline.text_encoder.get_input_embeddings().weight[ids]
    with torch.no_grad():
        found = encode_attacked(pipeline, "a photo of a ship", free)
    assert found[1] is None
    close(found[0], encode_prompts(pipeline, ["art of a photo of a ship"]), FLOAT32_PASS)


def test_free_tokens_of_two_encoders_are_words_too(toy_pipeline: Path) -> None:
    xl = family("sdxl", toy_pipeline)
    ids = xl.tokenizer("art of", add_special_tokens=False).input_ids
    tables = [encoder.get_input_embeddings().weight[ids] for encoder in (xl.text_encoder, xl.text_encoder_2)]
    with torch.no_grad():
        found = encode_attacked(xl, "a photo of a ship", torch.cat(tables, dim=1))
        wanted = encode_both(xl, ["art of a photo of a ship"])
    for ours, theirs in zip(found, wanted, strict=True):
        close(ours, theirs, FLOAT32_PASS)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_scheduler(
    pipeline: StableDiffusionPipeline, prediction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    generator = torch.Generator().manual_seed(seeded(0))
    latents, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([10, 900])
    with torch.no_grad():
        text = encode_prompts(pipeline, ["a ship"])
        noisy = pipeline.scheduler.add_noise(latents, noise, timesteps)
        predicted = pipeline.unet(noisy, timesteps, encoder_hidden_states=text.repeat(2, 1, 1)).sample
        velocity = pipeline.scheduler.get_velocity(latents, noise, timesteps)
        wanted = noise if prediction == "epsilon" else velocity
        found = diffusion_loss(pipeline, latents, (text, None), noise, timesteps)
    close(found, torch.nn.functional.mse_loss(predicted, wanted), FLOAT32_PASS)


def test_optimised_tokens_explain_the_image_better(pipeline: StableDiffusionPipeline) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seeded(1))).expand(4, -1, -1, -1)
    weights = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}

    def loss(free: torch.Tensor) -> float:
        generator = torch.Generator().manual_seed(seeded(9))  # noises that the attack did not see
        noise = torch.randn(64, 4, 8, 8, generator=generator)
        timesteps = torch.randint(1000, (64,), generator=generator)
        with torch.no_grad():
            text = encode_attacked(pipeline, "a photo of a ship", free)
            return float(diffusion_loss(pipeline, latents[:1].expand(64, -1, -1, -1), text, noise, timesteps))

    def attack(steps: int) -> torch.Tensor:
        stream = torch.Generator().manual_seed(seeded(3))
        return optimise_tokens(pipeline, "a photo of a ship", latents, 2, steps, 0.1, stream)[0]

    first, attacked = attack(1), attack(25)
    above(1 - loss(attacked) / loss(first), EXPLAINED)
    assert first.shape == (2, 32)
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, weights[name]), name


FEW = [f"--model.strengths.{name}=2" for name in ("token_steps", "token_samples", "tokens", "words", "finetune_images")]
FEW += ["--model.strengths.finetune", "[1, 2]"]


def command(base: Path, edited: Path, clip: Path, output: Path) -> list[str]:
    model = ["--model.pretrained", str(base), "--model.edited", str(edited), "--model.classifier", str(clip)]
    model += ["--model.output", str(output), "--model.steps", "2", *FEW]
    data = ["--data.names", "[ship, dog, cat]", "--data.targets", "[ship]", "--data.seeds", "1", "--data.trials", "1"]
    return ["attack", *model, *data, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def rates(base: Path, run: Path, clip: Path) -> dict[tuple[str, str], float]:
    """How often the target is seen, by kind of prompt and model, with diffusers' own call."""
    edited = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    for name, (weight, change) in changes(run, base).items():
        edited.unet.get_submodule(name).weight.data = torch.from_numpy(weight + change).float()
    models = {"original": StableDiffusionPipeline.from_pretrained(base, safety_checker=None), "edited": edited}
    data = AttackPrompts(["ship", "dog", "cat"], ["ship"], seeds=1, attacks=[])
    judge, found = ClipClassifier(str(clip), data.names, data.template), {}
    for batch in data.batches():
        for name, model in models.items():
            streams = [torch.Generator().manual_seed(seed) for seed in batch["seed"]]
            shown = model(batch["prompt"], num_inference_steps=2, guidance_scale=5.0, generator=streams).images
            seen = judge(shown).argmax(-1) == 0
            found[batch["kind"], name] = int(seen.sum()) / len(seen)
    return found


def test_what_cannot_be_written_or_ended_is_refused(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    args = command(toy_pipeline, run, toy_clip, run / "x.json")
    assert "lies in the run run" in exit_message(args, capsys) and not (run / "x.json").exists()
    args = command(toy_pipeline, run, toy_clip, tmp_path / "x.txt")
    assert "x.txt must end in .json" in exit_message(args, capsys)
    args = command(toy_pipeline, run, toy_clip, Path("/proc/x.json"))
    assert "/proc/x.json cannot be written" in exit_message(args, capsys)
    args = [*command(toy_pipeline, run, toy_clip, tmp_path / "x.json"), "--model.strengths.words", "10001"]
    assert "words=10001 must be at most 10,000" in exit_message(args, capsys)


def test_an_edit_is_attacked(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    erase_main(command(toy_pipeline, run, toy_clip, tmp_path / "attack.json"))
    written = json.loads((tmp_path / "attack.json").read_text())
    success = written["success"]["run"]["ship"]
    assert list(success) == ["plain", "misspelled", "punctuated", "case", "sentence", "free_tokens"]
    assert success["misspelled"]["images"] == 3 and success["free_tokens"]["images"] == 1
    assert success["free_tokens"]["clip"]["before"] == success["plain"]["clip"]["edited"]  # the same prompt and seed
    for (kind, name), rate in rates(toy_pipeline, run, toy_clip).items():
        assert success[kind]["clip"][name] == rate, (kind, name)
    prints = written["settings"]["fingerprints"]
    assert prints["original"] != prints["run"]
    assert len((tmp_path / "attack.md").read_text().splitlines()) == 2 + len(success)
    assert (written["settings"]["edited"], written["settings"]["classifier"]) == (["run"], toy_clip.name)
    assert not naming(tmp_path, tmp_path.parent, "config.yaml")


def test_edits_and_judges_stand_side_by_side_with_a_page_of_images(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path
) -> None:
    runs = [finished_run(tmp_path / name, toy_pipeline) for name in ("first", "second")]
    args = command(toy_pipeline, runs[0], toy_clip, tmp_path / "attack.json")
    args[args.index("--model.edited") + 1] = json.dumps([str(run) for run in runs])
    bright = {"class_path": "support.judges.Brightness", "init_args": {"names": ["cat", "dog", "ship"]}}
    args += ["--model.judge", json.dumps(["clip", bright]), "--data.attacks", json.dumps(list(ATTACKS))]
    erase_main(args)
    success = json.loads((tmp_path / "attack.json").read_text())["success"]
    assert success["first"] == success["second"]  # equal edits, equal seeds
    for attack in ATTACKS:
        found = success["first"]["ship"][attack]
        assert set(found) == {"images", "clip", "Brightness"} and found["clip"]["after"] in (0, 1)
        assert found["clip"]["before"] == success["first"]["ship"]["plain"]["clip"]["edited"]
    turns = success["first"]["ship"]["finetune"]["clip"]
    assert list(turns["within"]) == ["1", "2"] and turns["within"]["1"] <= turns["within"]["2"] == turns["after"]
    assert (tmp_path / "attack.md").read_text("utf-8").count("| finetune, 2 steps |") == 4
    page = (tmp_path / "attack.html").read_text("utf-8")
    assert page.count("<img") == len(ATTACKS) * 5  # the original's, and of each edit before and after
    assert page.count("data:image/png;base64") == len(ATTACKS) * 5 and "free tokens" in page
    assert not list(tmp_path.glob(".attack*"))


def test_trials_at_once_are_those_of_each_alone(toy_pipeline: Path, toy_clip: Path, tmp_path: Path) -> None:
    run, found = finished_run(tmp_path / "run", toy_pipeline), []
    for name, more in (("alone", []), ("together", ["--data.trials_at_once", "2"])):
        args = command(toy_pipeline, run, toy_clip, tmp_path / f"{name}.json")
        args[args.index("--data.trials") + 1] = "3"
        bright = {"class_path": "support.judges.Brightness", "init_args": {"names": ["cat", "dog", "ship"]}}
        attacks = ["--data.attacks", "[free_tokens, noise, finetune]", "--model.judge", json.dumps(bright)]
        erase_main([*args, *attacks, *more])
        found.append(json.loads((tmp_path / f"{name}.json").read_text())["success"])
    assert found[0] == found[1]


def test_a_target_that_is_no_class_is_refused(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    args = command(toy_pipeline, run, toy_clip, tmp_path / "attack.json")
    args[args.index("[ship]")] = "[moon]"
    assert "data.targets: ['moon'] are not in data.names=" in exit_message(args, capsys)
    args[args.index("[moon]")] = "[]"
    assert "data.targets is empty. Name at least one" in exit_message(args, capsys)


def test_a_file_that_is_read_is_not_replaced(
    toy_pipeline: Path, toy_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, names = finished_run(tmp_path / "run", toy_pipeline), tmp_path / "names.json"
    names.write_text("ship\ndog\n")
    edit = run / "edit.safetensors"
    for output, edited, said in ((names, run, f"model.output would replace {names}"), (edit, edit, "end in .json")):
        before = output.read_bytes()
        args = command(toy_pipeline, edited, toy_clip, output)
        args += ["--model.overwrite", "true", "--data.names", str(names)]
        assert said in exit_message(args, capsys)
        assert output.read_bytes() == before


def test_targets_that_a_run_does_not_erase_are_named(toy_pipeline: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", toy_pipeline)
    with pytest.warns(UserWarning, match=r"data\.targets: dog: .*run does not erase that, but ship"):
        warn_of_unerased([str(run)], ["ship", "dog"])
    with warnings.catch_warnings(action="error"):
        warn_of_unerased([str(run), str(toy_pipeline), str(run / "edit.safetensors")], ["ship"])
