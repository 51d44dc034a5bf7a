"""What is fuzzed, and how many of the cases each reader gets: cheap and much-travelled ones more than slow ones."""

from tests.harness.fuzz import bombs, foreign, models, projects, settings, texts
from tests.harness.fuzz.harness import MOST_LINES, Area

AREAS = {
    area.name: area
    for area in (
        Area("corpus", 16, texts.prepare_corpus, texts.corpus),
        Area("source", 6, texts.prepare_corpus, texts.source, MOST_LINES),
        Area("tokenizer", 6, texts.prepare_nothing, texts.tokenizer),
        Area("split", 6, texts.prepare_nothing, texts.split, MOST_LINES),
        Area("tokenize", 4, texts.prepare_corpus, texts.tokenize),
        Area("params", 12, settings.prepare_params, settings.params, MOST_LINES),
        Area("overrides", 1, settings.prepare_params, settings.overrides, MOST_LINES),
        Area("finetune", 2, settings.prepare_finetune, settings.finetune),
        Area("generate", 5, settings.prepare_generate, settings.generate),
        Area("prompts", 6, settings.prepare_generate, settings.prompts),
        Area("shards", 8, models.prepare_shards, models.shards),
        Area("checkpoint", 6, models.prepare_checkpoint, models.checkpoint),
        Area("directory", 6, models.prepare_directory, models.directory),
        Area("import", 6, foreign.prepare_import, foreign.imported),
        Area("reports", 8, projects.prepare_reports, projects.reports),
        Area("verify", 2, projects.prepare_verify, projects.verify),
        Area("bombs", 0.5, bombs.nothing, bombs.bombs),
        Area("environment", 1, bombs.nothing, bombs.environment),
        Area("folders", 1, bombs.nothing, bombs.folders),
    )
}
