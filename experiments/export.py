"""Writes a prompt for other programs: `python -m experiments.export --prompt=P --to=FOLDER`."""

from experiments import flags
from wayward_jax.errors import InputError
from wayward_jax.jobs.settings import ExportSettings


def main(given: flags.Given) -> None:
    """Writes the prompt that the flags name, and says where it is."""
    settings = ExportSettings.parse(given)
    for name in ("prompt", "to"):
        if getattr(settings, name) is None:
            raise InputError(name, None, "give one")
    # The libraries behind these take seconds to import, which --help should not have to wait for.
    from wayward_jax import models
    from wayward_jax.prompt_files import fit_prompt, read_prompt, save_prompt

    saved = read_prompt(settings.prompt)
    model = models.load(
        settings.model,
        cache_dir=settings.cache_dir,
        assets_dir=settings.assets_dir,
        bos=settings.bos,
    )
    prompt = fit_prompt(saved, model)
    save_prompt(settings.to, prompt, model, settings.format)
    if doubt := saved.doubt(model):
        print(doubt)
    print(f"{len(prompt)} vectors of {model.name}: {settings.to}")


if __name__ == "__main__":
    flags.run(main, ExportSettings)
